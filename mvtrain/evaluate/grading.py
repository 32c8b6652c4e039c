"""Is a response's final answer right? Numbers are compared by value, words by their text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_REASONING_ENDS = ("</Think>", "</think>", "</Parallel>")
_BOXED = "\\boxed{"
_ANSWER_LINE = re.compile(r"answer\s*(?:is)?\s*:?\s*(.+)", re.IGNORECASE)
_PLAIN_WORDS = re.compile(r"[A-Za-z]+(?:[ ,:]+[A-Za-z]+)*")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:/\d+)?")


@dataclass(frozen=True)
class Grade:
    """`correct` is None where the answer cannot be compared; `reason` says why it is not True."""

    correct: bool | None
    answer: str | None
    reason: str = ""


def grade(response: str, reference: str) -> Grade:
    """Grade what follows the reasoning, so that a number met on the way is never taken for the answer.

    Args:
        response: the assistant turn, without the prompt.
        reference: the right answer, plain or in `\\boxed{}`.

    Returns:
        A Grade. `correct` is False where the response gives no answer or another number or other plain words, None
        where equality cannot be told, as for two different formulas.
    """
    answer = final_answer(response)
    if answer is None:
        return Grade(False, None, "no answer: the response ends without \\boxed{...} or an answer line")
    expected = _normalise(_last_boxed(reference) or reference)
    found = _normalise(answer)
    if found == expected:
        return Grade(True, answer)
    if _PLAIN_WORDS.fullmatch(found) and _PLAIN_WORDS.fullmatch(expected):
        return Grade(False, answer, f"{found!r} is not {expected!r}")
    numbers = _as_number(found), _as_number(expected)
    if None in numbers:
        return Grade(None, answer, f"cannot compare {found!r} with {expected!r}")
    if numbers[0] == numbers[1]:
        return Grade(True, answer)
    return Grade(False, answer, f"{found} is not {expected}")


def final_answer(response: str) -> str | None:
    """The last complete `\\boxed{...}` after the reasoning, else the text of an answer line there, else None."""
    ends = [response.rfind(tag) + len(tag) for tag in _REASONING_ENDS if tag in response]
    conclusion = response[max(ends, default=0) :]
    boxed = _last_boxed(conclusion)
    if boxed is not None:
        return boxed
    lines = _ANSWER_LINE.findall(conclusion)
    return lines[-1].strip() if lines and _BOXED not in lines[-1] else None


def _last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` whose braces close; cut-off text gives no answer."""
    start = text.rfind(_BOXED)
    while start >= 0:
        depth, begin = 1, start + len(_BOXED)
        for index in range(begin, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if depth == 0:
                return text[begin:index]
        start = text.rfind(_BOXED, 0, start)
    return None


def _normalise(answer: str) -> str:
    text = answer.strip().strip("$").strip().rstrip(".").replace(r"\,", "").replace(r"\!", "")
    text = re.sub(r"^\(([A-Za-z])\)$", r"\1", text)
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    text = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text)
    return re.sub(r"\s+", " ", text)


def _as_number(text: str) -> Fraction | None:
    try:
        return Fraction(text) if _NUMBER.fullmatch(text) else None
    except ZeroDivisionError:
        return None
