"""What can go wrong between a question and its answer, and what follows from it: again, rejected, or stop."""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

LONGEST_WAIT = 600.0
"""Seconds. An endpoint that asks for a longer pause is not waited for."""
SHOWN = 500
"""Characters of what an endpoint says that get into a message."""


class RequestFailed(RuntimeError):
    """This question could not be answered; others may be. `kind` is one of the kinds of `Failure`."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class EndpointRefuses(RuntimeError):
    """No question will be answered until the user changes something; the message says what."""


class SpendReached(RuntimeError):
    """The next request might exceed the ceiling on what may be spent."""


@dataclass(frozen=True)
class Failure:
    """What became of one attempt that brought no answer."""

    kind: str
    """"rate limit", "server error", "no connection", "connection lost", "time-out", "no JSON", "no completion",
    "refused", or "bad request"."""
    words: str
    """What happened, without secrets."""
    then: Literal["again", "reject", "stop"] = "again"
    wait: float | None = None
    """Seconds that the endpoint asks for."""
    may_be_billed: bool = False
    """Nobody knows whether the endpoint did the work."""
    status: int = 0
    """Of HTTP, where there was one."""


AGAIN = {408, 409, 425}
OF_GATEWAYS = {408, 502, 504, 524}
"""The gateway gave up; the server behind it may have gone on, and may bill it."""
STOPS = {401, 402, 403, 404, 405, 407}
NO_MONEY = re.compile(r"insufficient_quota|billing_hard_limit|billing_not_active|insufficient[ _](credit|balance|fund)")
NEVER_FITS = re.compile(r"request too large", re.IGNORECASE)
"""OpenAI's words, with status 429, where one request alone exceeds the tokens per minute."""
MODERATION = re.compile(r"moderation|flagged|content[ _]policy|content_filter", re.IGNORECASE)
WRONG_SETTING = {
    "unsupported_parameter",
    "unsupported_value",
    "unknown_parameter",
    "model_not_found",
    "invalid_api_key",
    "unknown_model",
}
"""Codes of 400 that every other request would get as well."""


def judge(status: int, headers: Mapping[str, str], said: Said) -> Failure:
    """An HTTP error."""
    words = f"status {status}: {said.words}"
    if _stops(status, said):
        return Failure("refused", words, "stop", status=status)
    if status == 429 and not NEVER_FITS.search(said.words):
        return Failure("rate limit", words, wait=seconds_to_wait(headers), status=status)
    if status in AGAIN or status >= 500:
        wait, may_be_billed = seconds_to_wait(headers), status in OF_GATEWAYS
        return Failure("server error", words, wait=wait, may_be_billed=may_be_billed, status=status)
    return Failure("bad request", words, "reject", status=status)


def _stops(status: int, said: Said) -> bool:
    """Whether every other request would fare the same."""
    if status == 429:
        return bool(NO_MONEY.search(said.codes))
    if status == 403 and MODERATION.search(f"{said.codes} {said.words}"):
        return False
    return status in STOPS or said.code in WRONG_SETTING


@dataclass(frozen=True)
class Said:
    """The body of an error, as far as it can be understood."""

    words: str
    code: str = ""
    codes: str = ""
    """`code` and `type` together."""
    status: int | None = None
    """A status that the body holds: some gateways send an error as 200."""


def read_error(body: str, hide: Any) -> Said:
    """Of OpenAI's form, of vLLM's, of FastAPI's, or any text. `hide` takes the secrets out."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return Said(_shortened(hide(body)) or "no words")
    if isinstance(error, dict):
        error = error.get("error") or error
    if not isinstance(error, dict):
        return Said(_shortened(hide(str(error))))
    words = error.get("message") or error.get("detail") or json.dumps(error, ensure_ascii=False)
    code = error.get("code")
    status = int(code) if re.fullmatch(r"[45]\d\d", str(code)) else None
    return Said(_shortened(hide(str(words))), str(code), f"{code} {error.get('type')}", status)


def judge_inner(body: dict[str, Any], hide: Any) -> Failure | None:
    """An error that came with status 200, as some gateways send it, or in a line of a batch. None: there is none."""
    if not body.get("error"):
        return None
    said = read_error(json.dumps(body), hide)
    return judge(said.status or 500, {}, said)


def seconds_to_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """What Retry-After-Ms or Retry-After asks for, in seconds; None where there is nothing to be understood."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except (TypeError, ValueError, IndexError):
        return None
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[:SHOWN] + " ..."
