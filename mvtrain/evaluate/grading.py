"""Is a response's final answer right?

Numbers are compared exactly, words by their text, everything else by math-verify, which reads LaTeX into sympy. A wrong
answer that counts as right is worse than a right one that counts as ungradable: where equality cannot be told, the
grade is None.
"""

from __future__ import annotations

import functools
import re
import threading
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mvtrain.evaluate.grading_answers import as_number, final_answer, last_box, normalise, with_base
from mvtrain.evaluate.records import Kind

__all__ = ["Grade", "final_answer", "grade", "same_answer"]

LONGEST = 600
"""Characters of an answer that are still read as a formula."""
DEEPEST = 24
"""Braces and brackets within each other."""
LARGEST_EXPONENT = 2_000
SECONDS = 5
"""For reading a formula, and again for comparing two; only in a process's main thread, where a signal can stop it."""

_WORDS = re.compile(r"[A-Za-z]+(?:[ ,:'-]+[A-Za-z]+)*")
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}(?![A-Za-z])")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\{[a-z]+\}")
_CAPITAL = re.compile(r"\(?[A-Z]\)?")
_LETTER = re.compile(r"\(?\s*([A-Ja-j])\s*\)?(?:[.:)]\s.*|\s*)", re.DOTALL)
_UNITS = (
    "degrees?|units?|square units?|cubic units?|cm|mm|km|m|meters?|metres?|centimeters?|kilometers?|inch(?:es)?|in|"
    "feet|foot|ft|yards?|miles?|mi|mph|km/h|hours?|hr|h|minutes?|min|seconds?|sec|s|days?|weeks?|months?|years?|dollars?|"
    "cents?|pounds?|lbs?|kg|grams?|g|ounces?|oz|liters?|litres?|gallons?|ways?|people|students?|points?|percent|%|"
    "square (?:inches|feet|meters|centimeters|cm|units)|cubic (?:inches|feet|meters|centimeters|cm|units)"
)
_WITH_UNIT = re.compile(
    rf"(.*?[\d)}}]|.*\\pi)\s*(?:\^\\circ|{_UNITS})(?:\s*(?:\^\s*\{{?[23]\}}?|squared|cubed))?", re.IGNORECASE
)
_ASSIGNMENT = re.compile(r"\\?[A-Za-z]{1,7}(?:\([a-z]\))?\s*(?:=|\\in(?![a-z]))\s*(?!.*=)(.+)")


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
        reference: the right answer, plain or in a box; of a choice question the letter of the right option.

    Returns:
        A Grade. `correct` is False where the response gives no answer or another one, None where the two cannot be
        compared. Never raises; takes at most a few seconds in a process's main thread. `GradingPool` has a hard limit.
    """
    answer = final_answer(response)
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
    found, wanted = normalise(answer), normalise(expected)
    if _bare(found) == _bare(wanted):
        return (True, "") if _bare(wanted) else (None, "the reference is empty")
    for a, b in _forms(found, wanted):
        verdict = _compare_plainly(a, b)
        if verdict is not None:
            return (True, "") if verdict else (False, f"{answer[:200]!r} is not {expected[:200]!r}")
    return _compare_formulas(found, wanted)


def _bare(text: str) -> str:
    return (
        text.replace(" ", "").replace("{", "").replace("}", "").casefold()
        if _WORDS.fullmatch(text)
        else (re.sub(r"\s+|(?<=[_^])\{(?=\w\})|(?<=\^\{\w)\}|(?<=_\{\w)\}", "", text))
    )


def _forms(found: str, wanted: str) -> list[tuple[str, str]]:
    """Pairs to compare: as they are, then without units and `x =` where only one side has them."""
    pairs = [(found, wanted)]
    if bool(_ASSIGNMENT.fullmatch(found)) != bool(_ASSIGNMENT.fullmatch(wanted)):
        pairs.append(tuple(_unassigned(text) for text in (found, wanted)))
    pairs.append(tuple(_without_unit(text) for text in pairs[-1]))
    return list(dict.fromkeys(pairs))


def _unassigned(text: str) -> str:
    match = _ASSIGNMENT.fullmatch(text)
    return match[1].strip() if match else text


def _without_unit(text: str) -> str:
    match = _WITH_UNIT.fullmatch(text)
    return match[1].strip() if match and re.search(r"\d|\\pi", match[1]) else text


def _compare_plainly(found: str, wanted: str) -> bool | None:
    """Of numbers and words; None where the two are something else."""
    numbers = as_number(found), as_number(wanted)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if re.fullmatch(r"\([A-Za-z]\)", wanted) and _LETTER.fullmatch(found):
        return _LETTER.fullmatch(found)[1].upper() == wanted[1].upper()
    if len(_LONG_WORD.findall(_ENVIRONMENT.sub("", wanted))) > 1:  # a sentence or a list of names: no formula
        return re.sub(r"\W+", " ", found).casefold() == re.sub(r"\W+", " ", wanted).casefold()
    bases = with_base(found), with_base(wanted)
    if None not in bases:
        return bases[0] == bases[1]
    words = [_WORDS.fullmatch(text) is not None and len(text) > 1 for text in (found, wanted)]
    if all(words):
        may_be_products = sorted(found) == sorted(wanted) and " " not in found
        return None if may_be_products else found.casefold() == wanted.casefold()
    if any(words) or any(_CAPITAL.fullmatch(text) for text in (found, wanted)):
        return False if any(re.search(r"\d", text) for text in (found, wanted)) else None
    return None


def _compare_formulas(found: str, wanted: str) -> tuple[bool | None, str]:
    """Through math-verify, for what is neither a plain number nor words."""
    if problem := _too_large(found) or _too_large(wanted):
        return None, problem
    if _brackets(found) != _brackets(wanted) and "" not in (_brackets(found), _brackets(wanted)):
        return False, f"{found!r} and {wanted!r} have other brackets: intervals, points and sets differ"
    pairs = [tuple(map(_parse, pair)) for pair in _forms(found, wanted)]
    if pairs[0][1] is None and pairs[-1][1] is None:
        return None, f"the reference {wanted[:200]!r} cannot be read as a formula"
    if any(_verify(a, b) for a, b in pairs if a is not None and b is not None):
        if _is_point(_unassigned(found)) != _is_point(_unassigned(wanted)):
            return None, f"a point or an interval and a list of its numbers: {found!r}, {wanted!r}"
        return True, ""
    a, b = next((pair for pair in reversed(pairs) if None not in pair), (None, None))
    if a is None:
        return None, f"the answer {found[:200]!r} cannot be read as a formula"
    if _certainly_differ(a, b):
        return False, f"{found[:200]!r} is not {wanted[:200]!r}"
    return None, f"cannot tell whether {found[:200]!r} equals {wanted[:200]!r}"


def _too_large(text: str) -> str | None:
    """Why a formula is not given to sympy, which would compute without end."""
    if len(text) > LONGEST:
        return f"the answer has {len(text)} characters; formulas are read up to {LONGEST}"
    depth = deepest = 0
    for character in text:
        depth += {"{": 1, "(": 1, "[": 1, "}": -1, ")": -1, "]": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        return f"brackets nest {deepest} deep; formulas are read up to {DEEPEST}"
    exponents = re.findall(r"(?:\^|\*\*)\s*\{?\s*[+-]?\s*(\d+)", text)
    if any(len(e) > 6 or int(e) > LARGEST_EXPONENT for e in exponents) or re.search(r"\^[^+\-,=]{0,12}\^", text):
        return "an exponent is too large to compute with"
    if any(len(n) > 3 for n in re.findall(r"(\d+)\s*\}?\)?!", text)) or "!!" in text or re.search(r"\d{120}", text):
        return "a number is too large to compute with"
    return None


def _is_point(text: str) -> bool:
    """Round or square brackets around a list, in which order counts."""
    return _brackets(text)[:1] in ("(", "[")


def _brackets(text: str) -> str:
    """The outer brackets of a list of things, which tell an interval, a point and a set apart; else nothing."""
    text = text.replace("\\{", "{").replace("\\}", "}").replace(" ", "")
    if len(text) < 3 or text[0] not in "([{" or text[-1] not in ")]}" or "," not in text:
        return ""
    return text[0] + text[-1]


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """A sympy object, or None. Only LaTeX is read: sympy's reader of Python expressions evaluates what it is given."""
    from math_verify import LatexExtractionConfig, parse

    try:
        configs = (LatexExtractionConfig(boxed_match_priority=0),)
        parsed = parse(
            f"\\boxed{{{text}}}", configs, fallback_mode="no_fallback", extraction_mode="first_match",
            parsing_timeout=_seconds(),
        )  # fmt: skip
    except Exception:
        return None
    except BaseException as error:  # math-verify's time-out is no Exception
        if type(error).__name__ != "TimeoutException":
            raise
        return None
    return next((value for value in parsed if not isinstance(value, str)), None)


def _verify(found: Any, wanted: Any) -> bool:
    from math_verify import verify

    try:
        return verify(wanted, found, float_rounding=12, timeout_seconds=_seconds())
    except Exception:
        return False


def _seconds() -> int | None:
    return SECONDS if threading.current_thread() is threading.main_thread() else None


def _certainly_differ(a: Any, b: Any) -> bool:
    """Whether two sympy objects differ, rather than only look different."""
    import sympy

    try:
        if isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase):
            return a.shape != b.shape or any(map(_differ_at_points, a, b))
        if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
            return True
        if isinstance(a, sympy.Expr) and isinstance(b, sympy.Expr):
            return _differ_at_points(a, b)
        if isinstance(a, sympy.Eq) and isinstance(b, sympy.Eq):
            return _equations_differ(a, b)
        if isinstance(a, sympy.core.relational.Relational) and isinstance(b, sympy.core.relational.Relational):
            return a.free_symbols != b.free_symbols or a.as_set() != b.as_set()
        if a.args and len(a.args) == len(b.args) and all(isinstance(e, sympy.Eq) for e in (*a.args, *b.args)):
            values = [{equation.lhs: equation.rhs for equation in both.args} for both in (a, b)]
            return values[0].keys() == values[1].keys() and any(
                _differ_at_points(values[0][name], values[1][name]) for name in values[0]
            )
        return not (a.free_symbols and b.free_symbols)
    except Exception:
        return False


def _equations_differ(a: Any, b: Any) -> bool:
    """Polynomials of one degree have the same zeros only if one is a multiple of the other."""
    import sympy

    f, g = sympy.expand(a.lhs - a.rhs), sympy.expand(b.lhs - b.rhs)
    symbols = sorted(f.free_symbols | g.free_symbols, key=str)
    if f.free_symbols != g.free_symbols:
        return True
    if not (f.is_polynomial(*symbols) and g.is_polynomial(*symbols)):
        return False
    degrees = [sympy.Poly(p, *symbols).total_degree() for p in (f, g)]
    factor = sympy.Poly(f, *symbols).LC() / sympy.Poly(g, *symbols).LC()
    return degrees[0] == degrees[1] and sympy.expand(f - factor * g) != 0


def _with_constants(value: Any) -> Any:
    """i and e as the constants that they usually are where one side has them only."""
    import sympy

    constants = {"i": sympy.I, "e": sympy.E}
    return value.subs({s: constants[str(s)] for s in value.free_symbols if str(s) in constants})


def _differ_at_points(a: Any, b: Any) -> bool:
    """Values at a few points, to 30 digits. Formulas of other variables differ too."""
    if a.free_symbols != b.free_symbols:
        a, b = _with_constants(a), _with_constants(b)
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if a.free_symbols != b.free_symbols:
        return True
    for k in range(1, 4):
        point = {symbol: Fraction(7 * k + 3 * i, 11 + i) for i, symbol in enumerate(symbols)}
        values = [complex(value.evalf(30, subs={s: float(v) for s, v in point.items()})) for value in (a, b)]
        scale = max(1.0, *map(abs, values))
        if abs(values[0] - values[1]) > 1e-9 * scale:
            return True
    return False


def _compare_choice(answer: str, expected: str) -> tuple[bool | None, str]:
    """The letter of an option, perhaps with brackets or the option's text behind it."""
    found, wanted = _LETTER.fullmatch(normalise(answer)), _LETTER.fullmatch(normalise(expected))
    if wanted is None:
        return None, f"the reference {expected[:200]!r} is no letter"
    if found is None:
        return False, f"{answer[:200]!r} is not the letter of one option"
    if found[1].upper() == wanted[1].upper():
        return True, ""
    return False, f"{found[1].upper()} is not {wanted[1].upper()}"
