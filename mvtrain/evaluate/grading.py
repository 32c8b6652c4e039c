"""Is a response's final answer right?

The answer is looked for behind the reasoning (`grading_answers`), both sides are brought to one spelling
(`grading_text`) and taken apart (`grading_shapes`); numbers are compared exactly, words by their letters
(`grading_leaves`) and formulas by their values (`grading_values`). A wrong answer that counts as right is worse than a
right one that counts as ungradable: where equality cannot be told, the grade is None.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from mvtrain.evaluate.grading_answers import final_answer, last_box
from mvtrain.evaluate.grading_formulas import Unreadable
from mvtrain.evaluate.grading_leaves import is_words
from mvtrain.evaluate.grading_shapes import same_shape, shape
from mvtrain.evaluate.grading_text import key, normalise, quantity, without_thousands
from mvtrain.evaluate.records import Kind

__all__ = ["Grade", "compare", "final_answer", "grade", "same_answer"]

LONGEST = 6_000
"""Characters of an answer that is taken apart."""

_LETTER = re.compile(
    r"(?:\\text\{)?(?:(?:option|choice|answer)\s+)?\(?\s*(?P<letter>[A-J])(?:\}|\s)*(?:\)|(?=[.:}\s]|$))"
    r"(?:(?:\}|\s)*|[.:}]?\s*(?P<rest>.*))",
    re.IGNORECASE | re.DOTALL,
)
_ANOTHER_LETTER = re.compile(r"(?:[,/&+;]|or\b|and\b)\s*(?:or\b|and\b)?\s*\(?[A-Ja-j](?![A-Za-z])|\(\s*[A-J]\s*\)")
_MARKED_LETTER = re.compile(r"\(\s*[A-Ja-j]\s*\)|\\text\{\s*(?:\(\s*[A-Ja-j]\s*\)|[A-J])\s*\}")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\}")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")
_CUT_OFF = re.compile(r"(?:[-+*/=<>^_,(\[{]|\\(?:cdot|times|frac|sqrt|pm|le|ge|cup|in))$")


@dataclass(frozen=True)
class Grade:
    """`correct` is None where equality cannot be told; `reason` says why it is not True."""

    correct: bool | None
    answer: str | None
    reason: str = ""


def grade(response: str, reference: str, kind: Kind = "math") -> Grade:
    """Grade what follows the reasoning, so that a number met on the way is never taken for the answer.

    Args:
        response: the assistant turn, without the prompt.
        reference: the right answer, plain, in a box or behind ####; of a choice question the right letter.

    Returns:
        A Grade. `correct` is False where the response gives no answer or another one, None where the two cannot be
        compared. Never raises on any text, and computes with bounds. `GradingPool` has a hard limit as well.

    Raises:
        ImportError: math-verify is not there; the error names the extra to install.
    """
    answer = final_answer(response, kind)
    if answer is None:
        return Grade(False, None, "no answer after the reasoning: no complete \\boxed{...} and no answer line")
    expected = last_box(reference) or reference.rpartition("####")[2].strip()
    correct, reason = _compare_choice(answer, expected) if kind == "choice" else compare(answer, expected)
    return Grade(correct, answer, reason)


@functools.lru_cache(maxsize=4096)
def same_answer(a: str, b: str) -> bool:
    """Whether two answers certainly mean the same; for majority votes."""
    return compare(a, b)[0] is True


def compare(answer: str, expected: str) -> tuple[bool | None, str]:
    """(whether the two are equal, why they are not or why that cannot be told)."""
    if max(len(answer), len(expected)) > LONGEST and answer != expected:
        return None, f"an answer of {max(len(answer), len(expected))} characters; up to {LONGEST} are read"
    try:
        verdict, reason = _compare(normalise(answer), normalise(expected))
    except Unreadable as error:
        verdict, reason = None, str(error)
    except ImportError:
        raise
    except Exception as error:  # of a text that nobody thought of
        verdict, reason = None, f"comparing failed: {type(error).__name__}: {str(error)[:200]}"
    if verdict is None and not reason:
        reason = f"cannot tell whether {answer[:200]!r} equals {expected[:200]!r}"
    return verdict, reason or ("" if verdict else f"{answer[:200]!r} is not {expected[:200]!r}")


def _compare(found: str, wanted: str) -> tuple[bool | None, str]:
    if not wanted:
        return None, "the reference is empty"
    if key(found) == key(wanted):
        return True, ""
    if not found or _CUT_OFF.search(found):
        return False, f"{found[:200]!r} is not complete"
    if _MARKED_LETTER.fullmatch(wanted) and (letter := _letter(found)):
        return letter == _letter(wanted), ""
    if _is_prose(wanted):
        return _in_words(found) == _in_words(wanted), ""
    joined = without_thousands(found), without_thousands(wanted)
    verdict = same_shape(shape(joined[0]), shape(joined[1]))
    if verdict is False and joined != (found, wanted):  # 100,200 may be a list
        other = [shape(text) for text in (found, wanted)]
        if all(s.form != "leaf" for s in other):
            verdict = same_shape(*other) and None
    return verdict, ""


def _is_prose(text: str) -> bool:
    """A sentence, or a list of names with numbers: nothing that could be computed."""
    bare = _ENVIRONMENT.sub("", text)
    return len(_LONG_WORD.findall(bare)) > 1 and not is_words(text) and quantity(text)[1] is None


def _in_words(text: str) -> str:
    return re.sub(r"\W+", " ", text.replace(r"\text", "")).strip().casefold()


def _letter(text: str) -> str | None:
    """The option that a text names by its letter, perhaps with the option's text behind it."""
    match = _LETTER.fullmatch(text)
    if match is None or _ANOTHER_LETTER.match((match["rest"] or "").lstrip(" )}")):
        return None
    is_bare = "(" not in text[: match.start("letter") + 3] and ")" not in text[: match.end("letter") + 2]
    if is_bare and match["rest"] and not re.match(r"\s*(?:\}\s*)?[.:]", text[match.end("letter") :]):
        return None
    return match["letter"].upper()


def _compare_choice(answer: str, expected: str) -> tuple[bool | None, str]:
    """By the letter of the option."""
    found, wanted = _letter(normalise(answer)), _letter(normalise(expected))
    if wanted is None:
        return None, f"the reference {expected[:200]!r} is no letter"
    if found is None:
        return False, f"{answer[:200]!r} is not the letter of one option"
    return found == wanted, "" if found == wanted else f"{found} is not {wanted}"
