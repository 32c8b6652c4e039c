"""Which endpoint is asked and how. Secrets come from the environment only; `Endpoint.hide` takes them out of text."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from mvtrain.provenance import without_secrets

OPENAI = "https://api.openai.com/v1"
OWN_FIELDS = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "stream", "n"}
MOST_CONNECTIONS = 1000
"""Of the openai library."""
HARMLESS_QUERY = {"api-version"}
SHORTEST_SECRET = 6
"""Characters. Shorter values are placeholders such as EMPTY, that are no secrets."""
RECOGNISED = 12
"""The first characters of a key by which a part of it is recognised too."""


@dataclass(frozen=True)
class ClientConfig:
    """It holds no secret, so it may be printed and written down. Raises ValueError with every field that is wrong."""

    model: str
    base_url: str | None = None
    """None: the environment's OPENAI_BASE_URL, or else OpenAI's own. One with a password or a key goes there."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    temperature: float | None = 0.6
    """None: the endpoint's own."""
    concurrency: int = 64
    """Requests at the same time."""
    timeout_s: float = 600.0
    """Seconds for one attempt, from the connection to the last byte."""
    max_retries: int = 6
    backoff_s: float = 1.0
    """Seconds before the first repetition; each further pause is twice as long, up to a minute."""
    price_input: float | None = None
    """US dollars per million tokens."""
    price_output: float | None = None
    max_spend: float | None = None
    """US dollars. Needs both prices."""
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    """Goes into every request as it is, for example {"top_p": 0.95}."""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """OpenAI's reasoning models want the second one."""
    stop_after_failures: int = 20
    """So many questions that fail with no answer in between are taken for the endpoint's fault: all stops."""
    batch_discount: float = 0.5
    """The price of a question in a batch, as a part of the ordinary one."""
    batch_quiet_s: float = 5.0
    """Seconds without a new question after which those collected are sent as a batch."""
    batch_size: int = 10_000
    """Questions in one batch, at most."""
    batch_bytes: int = 100_000_000
    """Size of one batch's file, at most."""
    batch_poll_s: float = 10.0
    """Seconds before a batch is first looked at; pauses grow to thirty times that."""

    def __post_init__(self) -> None:
        problems = [f"{name}: {problem}" for name, problem in self._problems() if problem]
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[tuple[str, str]]:
        yield "model", "" if isinstance(self.model, str) and self.model.strip() else "expected the name of a model"
        yield "base_url", _problem_of_address(self.base_url) if self.base_url is not None else ""
        yield "api_key_env", _problem_of_name(self.api_key_env)
        yield "temperature", "" if self.temperature is None else _outside(self.temperature, 0, 10)
        yield "timeout_s", _outside(self.timeout_s, 0.001, 86400)
        too_many = isinstance(self.concurrency, int) and self.concurrency > MOST_CONNECTIONS
        yield "concurrency", f"expected at most {MOST_CONNECTIONS}" if too_many else _not_a_count(self.concurrency, 1)
        yield "max_retries", _not_a_count(self.max_retries, 0)
        for name in ("stop_after_failures", "batch_size", "batch_bytes"):
            yield name, _not_a_count(getattr(self, name), 1)
        for name in ("backoff_s", "batch_quiet_s", "batch_poll_s"):
            yield name, _outside(getattr(self, name), 0, 3600)
        for name in ("price_input", "price_output", "max_spend"):
            value = getattr(self, name)
            yield name, "" if value is None else _outside(value, 0, math.inf)
        yield "batch_discount", _outside(self.batch_discount, 0, 1)
        yield "max_spend", self._problem_of_ceiling()
        yield "extra_body", self._problem_of_extra_body()
        known = ("max_tokens", "max_completion_tokens")
        yield "token_limit_field", "" if self.token_limit_field in known else f"expected {' or '.join(known)}"

    def _problem_of_ceiling(self) -> str:
        unpriced = [name for name in ("price_input", "price_output") if getattr(self, name) is None]
        if self.max_spend is None or not unpriced:
            return ""
        return f"a ceiling needs prices: set {' and '.join(unpriced)} (US dollars per million tokens)"

    def _problem_of_extra_body(self) -> str:
        if not isinstance(self.extra_body, Mapping):
            return f"expected a mapping, not {self.extra_body!r}"
        taken = sorted(OWN_FIELDS & set(self.extra_body))
        if taken:
            return f"{', '.join(taken)} cannot be set here"
        try:
            json.dumps(dict(self.extra_body), allow_nan=False)
        except (TypeError, ValueError) as error:
            return f"is no JSON: {error}"
        return ""


class Endpoint:
    """Where a configuration leads in this environment. `address` has no credentials and no query."""

    def __init__(self, config: ClientConfig, environment: Mapping[str, str] = os.environ) -> None:
        """Raises ValueError where the address or the key cannot be used."""
        given = config.base_url or environment.get("OPENAI_BASE_URL") or OPENAI
        problem = _problem_of_form(given)
        if problem:
            raise ValueError(f"OPENAI_BASE_URL: {problem}")
        parts = urlsplit(given)
        credentials, _, host = parts.netloc.rpartition("@")
        self.address = f"{parts.scheme}://{host.lower()}{parts.path.rstrip('/')}"
        self.key = environment.get(config.api_key_env, "").strip()
        self.key_name = config.api_key_env
        self._check_key()
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        basic = base64.b64encode(unquote(credentials).encode()).decode()
        self.headers = {"Authorization": f"Basic {basic}"} if credentials else {}
        user, _, password = credentials.partition(":")
        hidden = [value for name, value in self.query.items() if name not in HARMLESS_QUERY]
        secret = [self.key, *([basic, password or user] if credentials else []), *hidden]
        self._exact = _pattern(_forms(secret))
        self._parts = _pattern(_forms(secret), recognise=True)

    def hide(self, text: str) -> str:
        """Text of an endpoint or of a library, without the key, or what begins as the key does, and without any other
        secret of the environment."""
        return without_secrets(self._parts.sub("***", text) if self._parts else text)

    def hide_key(self, text: str) -> str:
        """An answer without the key; nothing else of it is changed."""
        return self._exact.sub("***", text) if self._exact else text

    def advice(self) -> str:
        """What to look at where the endpoint refuses."""
        key = f"the key in {self.key_name}" if self.key else f"the key ({self.key_name} is not set)"
        return f"check base_url, model and {key}"

    def _check_key(self) -> None:
        if not self.key and self.address == OPENAI:
            raise ValueError(f"api_key_env: {self.key_name} is not set, and {OPENAI} needs a key")
        if not self.key and self.key_name != ClientConfig.api_key_env:
            raise ValueError(f"api_key_env: {self.key_name} is not set; set it, or name no variable to send no key")
        if not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(f"api_key_env: what {self.key_name} holds is no key: it has line ends or other signs")


class HidingFilter(logging.Filter):
    """Takes secrets out of what the libraries below log: addresses, headers and bodies, at any level."""

    LIBRARIES = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
    LATE = ("connection", "http11", "http2", "proxy", "socks")
    """Loggers of httpcore that may come into being later."""

    def __init__(self, hide: Callable[[str], str]) -> None:
        super().__init__()
        self.hide = hide
        names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in self.LIBRARIES]
        late = [f"{core}.{name}" for core in ("httpcore", "httpcore2") for name in self.LATE]
        self._loggers = [logging.getLogger(name) for name in {*names, *self.LIBRARIES, *late}]

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self.hide(record.getMessage()), ()
        record.exc_info = record.exc_text = record.stack_info = None
        return True

    def install(self) -> None:
        for logger in self._loggers:
            logger.addFilter(self)

    def remove(self) -> None:
        for logger in self._loggers:
            logger.removeFilter(self)


def _forms(secrets: Iterable[str]) -> set[str]:
    """Each as it is, and as it stands in an address or in JSON."""
    long = [secret for secret in secrets if len(secret) >= SHORTEST_SECRET]
    return {form for secret in long for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])}


def _pattern(forms: set[str], recognise: bool = False) -> re.Pattern[str] | None:
    """recognise: also what begins as they do, as an endpoint may cut a key off or mask its end."""
    beginnings = [re.escape(form[:RECOGNISED]) + r"[\w*.~+/=%-]*" for form in forms] if recognise else []
    patterns = sorted(map(re.escape, forms), key=len, reverse=True) + beginnings
    return re.compile("|".join(patterns)) if patterns else None


def _problem_of_form(address: str) -> str:
    """The address itself is not repeated: it may hold a secret."""
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return ""
    except ValueError:
        pass
    return "expected http://HOST[:PORT]/PATH or https://..., as http://localhost:8000/v1"


def _problem_of_address(address: str) -> str:
    if not isinstance(address, str) or _problem_of_form(address):
        return _problem_of_form(str(address))
    parts = urlsplit(address)
    names = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)} - HARMLESS_QUERY
    if "@" in parts.netloc or names:
        return "may hold a secret (a user or a query): set the whole address as OPENAI_BASE_URL in the environment"
    return ""


def _problem_of_name(name: str) -> str:
    """What is given is not repeated: it may be the key."""
    if isinstance(name, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return ""
    return "expected the name of an environment variable that holds the key, not the key itself"


def _outside(value: Any, least: float, most: float) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and least <= value <= most:
        return ""
    bounds = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
    return f"expected a number {bounds}, not {value!r}"


def _not_a_count(value: Any, least: int) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return "" if is_count else f"expected a whole number of at least {least}, not {value!r}"
