"""What the chat server of the tests says and does wrong; tests import these names from `tests.chat_server`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

COUNTED_CHARACTERS = 4
"""Characters to a token where a Reply does not say how many tokens it has."""


@dataclass(frozen=True)
class Reply:
    """What the model says. None for a token count: a quarter of the characters."""

    text: str | None
    finish_reason: str | None = "stop"
    refusal: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    usage: bool = True
    """False: the answer has no usage."""
    delay: float = 0.0
    """Seconds before it is sent."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong instead of an answer. Make one with the functions below."""

    kind: str
    code: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""
    pause: float = 0.0

    @staticmethod
    def status(
        code: int, message: str = "no", *, retry_after: str = "", error_code: str = "", headers: dict | None = None
    ) -> Fault:
        """An HTTP error with a body as OpenAI's. retry_after: seconds or a date, as it stands in the header."""
        all_headers = {**({"Retry-After": retry_after} if retry_after else {}), **(headers or {})}
        error = {"message": message, "type": error_code or "error", "param": None, "code": error_code or None}
        return Fault("status", code, tuple(all_headers.items()), json.dumps({"error": error}))

    @staticmethod
    def raw(body: str, code: int = 200, content_type: str = "application/json") -> Fault:
        """This body and nothing else."""
        return Fault("status", code, (("Content-Type", content_type),), body)

    @staticmethod
    def html(code: int = 200) -> Fault:
        """A page of a gateway."""
        return Fault.raw("<html><body>Bad gateway</body></html>", code, "text/html")

    @staticmethod
    def empty_choices() -> Fault:
        return Fault.raw('{"id": "c", "object": "chat.completion", "choices": []}')

    @staticmethod
    def hang() -> Fault:
        """No byte is ever sent; the connection stays open."""
        return Fault("hang")

    @staticmethod
    def drop() -> Fault:
        """The connection is closed without an answer."""
        return Fault("drop")

    @staticmethod
    def drop_in_body() -> Fault:
        """Closed after half of the announced bytes."""
        return Fault("drop_in_body")

    @staticmethod
    def cut_json() -> Fault:
        """Half of the JSON, announced as whole."""
        return Fault("cut_json")

    @staticmethod
    def trickle(pause: float = 0.05) -> Fault:
        """One blank every `pause` seconds, for ever: every single read is quick, the answer never comes."""
        return Fault("trickle", pause=pause)

    @staticmethod
    def no_content() -> Reply:
        """`content` is null. A Reply: it is an answer."""
        return Reply(None)

    @staticmethod
    def refusal(words: str = "I cannot help with that.") -> Reply:
        return Reply(None, refusal=words)

    @staticmethod
    def length(text: str = "cut off in the mid") -> Reply:
        return Reply(text, finish_reason="length")


Play = Callable[[dict[str, Any]], "str | Reply"]
Faults = Callable[[dict[str, Any], int], "Fault | Reply | None"]


@dataclass
class Seen:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: Any
    """Parsed where it is JSON, else bytes."""
    n: int
    """How often this body was seen before."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    """None: it was never answered."""


def completion(request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """The JSON of a chat completion."""
    characters = sum(len(str(message["content"])) for message in request["messages"])
    prompt = reply.prompt_tokens if reply.prompt_tokens is not None else characters // COUNTED_CHARACTERS
    said = len(reply.text or "") // COUNTED_CHARACTERS
    completion = reply.completion_tokens if reply.completion_tokens is not None else said
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": request.get("model"),
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
    }
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {**answer, "usage": usage} if reply.usage else answer
