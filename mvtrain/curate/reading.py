"""Reading what a model answered: text, or JSON with a known form."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mvtrain.curate.records import Complaint, Complaints

Form = TypeVar("Form", bound=BaseModel)

_THOUGHT = re.compile(r"\A.*</think>", re.DOTALL | re.IGNORECASE)  # chat templates may write the opening tag themselves
_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.DOTALL)
_WRAPPED = re.compile(r"\A\s*```[\w-]*\n(.*)\n```\s*\Z", re.DOTALL)
_BEGIN_WITH_N = (
    "n(?:abla|atural|cong|e|earrow|eg|eq|ewline|exists|geq|i|leq|less|mid|ode|olimits|onumber|ot|otin|parallel|prec"
    "|sim|subseteq|u|warrow|oindent|gtr)"
)
_BAD_ESCAPE = re.compile(rf'\\(?=[^"\\/bfnrtu]|u(?![0-9a-fA-F]{{4}})|[bfrt][a-zA-Z]|{_BEGIN_WITH_N}(?![a-zA-Z]))')
"""A backslash of LaTeX: before what JSON does not escape, or of a command that would become a tab or a new line."""
_OBJECT = re.compile(r"\{(?=\s*[\"}])")
MOST_ATTEMPTS = 20
_TRAILING_COMMA = re.compile(r",(\s*[}\]])")
_PAIR = re.compile(r"\\\\")


def read_text(answer: Any) -> str:
    """The answer's text, without what a reasoning model thought before it. Raises Complaints where there is none."""
    if answer.finish_reason in ("content_filter", "refusal"):
        raise Complaints.of("refused", "the answer was refused; the task is to describe or copy the text that is given")
    if answer.finish_reason == "length":
        raise Complaints.of("cut off", "the answer was cut off at the length limit; be shorter, and end it")
    text = _THOUGHT.sub("", answer.text).strip()
    if not text:
        raise Complaints.of("empty", "the answer is empty")
    return text


def unwrapped(text: str) -> str:
    """Plain text that a model put into a code fence."""
    wrapped = _WRAPPED.match(text)
    return (wrapped[1] if wrapped else text).strip()


def read_json(text: str, form: type[Form]) -> Form:
    """The one JSON object of an answer, alone or in a code fence or between words. Raises Complaints."""
    value = _first_object(text)
    try:
        return form.model_validate(value)
    except ValidationError as error:
        raise Complaints([_complaint(e) for e in error.errors()[:8]]) from None


def _first_object(text: str) -> Any:
    """The first JSON object of a text, of its last code fence that has one; commas before a bracket are let pass.

    Raises Complaints, with what is wrong with the first attempt.
    """
    fault = ""
    for candidate in (*reversed(_FENCE.findall(text)), text):
        for start in [place.start() for place in _OBJECT.finditer(candidate)][:MOST_ATTEMPTS]:
            content = _TRAILING_COMMA.sub(r"\1", _with_latex_escaped(candidate[start:]))
            try:
                return json.JSONDecoder(strict=False).raw_decode(content)[0]
            except json.JSONDecodeError as error:
                fault = fault or f"the answer is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
            except RecursionError:
                fault = fault or "the JSON nests too deep"
    shown = " ".join(text.split())[:80]
    raise Complaints.of("not JSON", fault or f"expected one JSON object, found none; the answer begins: {shown}")


def _with_latex_escaped(content: str) -> str:
    """Double the backslashes that JSON would refuse or take for control characters."""
    pieces = _PAIR.split(content)
    return r"\\".join(_BAD_ESCAPE.sub(r"\\\\", piece) for piece in pieces)


def _complaint(error: Any) -> Complaint:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    return Complaint("wrong form", f"{place or 'the object'}: {error['msg']}")
