"""What an endpoint's JSON says, as an `Answer`. Judging it is the stages' work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mvtrain.curate.faults import Failure, judge_inner
from mvtrain.curate.spending import Usage


@dataclass(frozen=True)
class Answer:
    """`text` is "" where there is none. `usage` is what the answer cost when it was asked for, also where it is
    `cached`, which costs nothing."""

    text: str
    finish_reason: str
    """"stop", "length", "content_filter", "refusal" (the model declined; see `refusal`), or the endpoint's own."""
    usage: Usage
    cached: bool
    refusal: str = ""
    estimated: bool = False
    """The endpoint has not told its usage; what it can have been at most is given."""

    def stored(self) -> dict[str, Any]:
        """For the cache."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "refusal": self.refusal,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "estimated": self.estimated,
        }

    @staticmethod
    def from_stored(stored: dict[str, Any]) -> Answer:
        usage = Usage(stored["prompt_tokens"], stored["completion_tokens"])
        text, reason = stored["text"], stored["finish_reason"]
        return Answer(text, reason, usage, True, stored["refusal"], stored["estimated"])


@dataclass(frozen=True)
class Completion:
    """A completion; its usage is None where the endpoint does not tell."""

    text: str
    finish_reason: str
    refusal: str
    usage: Usage | None

    def answer(self, counted: Usage) -> Answer:
        return Answer(self.text, self.finish_reason, counted, False, self.refusal, self.usage is None)


def read_completion(
    body: dict[str, Any], hide: Callable[[str], str], hide_key: Callable[[str], str]
) -> tuple[Completion | Failure, Usage | None]:
    """The second value is the usage, which an answer without a completion may have too."""
    usage = _usage(body.get("usage"))
    failure = judge_inner(body, hide)
    if failure:
        return failure, usage
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return Failure("no completion", "the answer holds no completion", may_be_billed=True), usage
    text = hide_key(_text(message.get("content")))
    refusal = hide_key(_text(message.get("refusal")))
    reason = "refusal" if refusal and not text else str(choice.get("finish_reason") or "stop")
    return Completion(text, reason, refusal, usage), usage


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    if all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return Usage(*counts)
    return None


def _text(content: Any) -> str:
    """Some endpoints send a list of parts. Halves of surrogate pairs, which no file can hold, become "?"."""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content.encode("utf-8", "replace").decode() if isinstance(content, str) else ""
