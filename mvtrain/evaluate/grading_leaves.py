"""Whether two single answers are equal: numbers with and without units, words, times, formulas."""

from __future__ import annotations

import re
from fractions import Fraction

from mvtrain.evaluate.grading_equality import same_value
from mvtrain.evaluate.grading_text import (
    MOST_DIGITS,
    as_number,
    key,
    quantity,
    with_base,
    without_thousands,
)

Verdict = bool | None
_WORDS = re.compile(r"(?=[A-Za-z\\])(?:\\text\{[^{}]*\}|[A-Za-z',:\s]|(?<=[A-Za-z]{2})-(?=[A-Za-z]{2}))+")
_MACRO = re.compile(r"\\text\{([^{}]*)\}")
_ARTICLE = re.compile(r"^(?:the|an?) ")
_SYNONYMS = {"dne": "does not exist", "infinite": r"\infty", "infinity": r"\infty"}
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}
_COLONS = re.compile(r"(\d{1,9}(?:\s*:\s*\d{1,9})+)\s*((?:[ap]\.?\s*m\.?|\\text\{\s*[ap]\.?\s*m\.?\s*\})?)", re.I)
_INFINITY = re.compile(r"([+-]?)\s*\\infty")
_LONG_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_FUNCTION_OR_CAPITAL = re.compile(r"\\[A-Za-z]+|[A-Z]")
_SHORT_WORDS = {"yes", "no", "odd", "all", "one", "two", "six", "ten"}
_LONGEST_PRODUCT = 3
"""Letters in a row that may be a product."""


def same_leaf(a: str, b: str) -> Verdict:
    """Whether two normalised answers without inner commas are equal; None where that cannot be told.

    Raises Unreadable where a formula cannot be read.
    """
    for compare in (_same_colons, _same_bases, _same_words):
        decided, verdict = compare(a, b)
        if decided:
            return verdict
    (value_a, unit_a), (value_b, unit_b) = quantity(a), quantity(b)
    if unit_a and unit_b and unit_a != unit_b:
        return _same_in_other_units(value_a, unit_a, value_b, unit_b)
    if (unit_a is None) != (unit_b is None):
        return _same_with_one_unit(value_a, value_b, unit_a or unit_b, reverse=unit_a is None)
    return same_number(value_a, value_b)


def same_number(a: str, b: str) -> Verdict:
    """Of numbers and formulas without units."""
    a, b = without_thousands(a), without_thousands(b)
    if key(a) == key(b):
        return True
    numbers = as_number(a), as_number(b)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if all(_LONG_NUMBER.fullmatch(text) for text in (a, b)):
        return _plain_digits(a) == _plain_digits(b)
    infinities = _INFINITY.fullmatch(a), _INFINITY.fullmatch(b)
    if any(infinities):
        if all(infinities):
            return (infinities[0][1] == "-") == (infinities[1][1] == "-")
        return False if any(number is not None for number in numbers) else None
    verdict = same_value(a, b)
    return None if verdict is False and _differ_in_case_only(a, b) else verdict


def _differ_in_case_only(a: str, b: str) -> bool:
    """R for r is likely slovenly, and might be another thing."""
    lowered = [_FUNCTION_OR_CAPITAL.sub(lambda m: m[0] if m[0][0] == "\\" else m[0].lower(), t) for t in (a, b)]
    if lowered == [a, b] or any(_has_both_cases(_COMMAND.sub("", text)) for text in (a, b)):
        return False
    return same_value(*lowered) is True


def _has_both_cases(text: str) -> bool:
    return any(c.isupper() and c.lower() in text for c in text)


def _plain_digits(text: str) -> str:
    sign = "-" if text.startswith("-") else ""
    whole, _, decimals = text.lstrip("+-").partition(".")
    whole, decimals = whole.lstrip("0") or "0", decimals.rstrip("0")
    return (sign if (whole, decimals) != ("0", "") else "") + whole + ("." + decimals if decimals else "")


def _same_with_one_unit(a: str, b: str, unit: tuple[str, Fraction], reverse: bool) -> Verdict:
    """A unit that the reference does not name, or the answer leaves out, does not matter; percents and degrees may."""
    verdict = same_number(a, b)
    with_unit, without = (b, a) if reverse else (a, b)
    if verdict is True and unit[0] == "percent^1" and (number := as_number(a)) is not None and abs(number) <= 1:
        return None  # 0.5 for 0.5% is more likely 50%
    if verdict is not False:
        return verdict
    if unit[0] == "percent^1" and len(with_unit) < MOST_DIGITS:
        return same_number(rf"\frac{{{with_unit}}}{{100}}", without)
    if unit[0] == "angle^1" and r"\pi" in without:
        return same_number(rf"\frac{{{with_unit}}}{{180}} \pi", without)
    return False


def _same_in_other_units(a: str, unit_a: tuple[str, Fraction], b: str, unit_b: tuple[str, Fraction]) -> Verdict:
    """1 m is 100 cm, 5 m is not 5 cm; of units that are not known only another number in the same place tells."""
    if unit_a[0] == unit_b[0]:
        numbers = as_number(without_thousands(a)), as_number(without_thousands(b))
        if None not in numbers:
            return numbers[0] * unit_a[1] == numbers[1] * unit_b[1]
        return False if same_number(a, b) else None
    if "plain^1" in (unit_a[0], unit_b[0]):
        return same_number(a, b)
    is_known = [unit[1] != 1 or unit[0].split("^")[0] in _DIMENSIONS for unit in (unit_a, unit_b)]
    return False if all(is_known) or same_number(a, b) is False else None


_DIMENSIONS = ("length", "time", "money", "mass", "volume", "angle", "percent")


def _same_colons(a: str, b: str) -> tuple[bool, Verdict]:
    """Times and ratios, 2:15. The same ratio in other numbers may be right or not, as may the fraction."""
    colons = _COLONS.fullmatch(a), _COLONS.fullmatch(b)
    if not any(colons):
        return False, None
    parts = [[int(p) for p in m[1].split(":")] if m else None for m in colons]
    if None in parts:
        other = b if colons[0] else a
        ratio = next(p for p in parts if p)
        is_fraction = len(ratio) == 2 and ratio[1] and as_number(other) == Fraction(ratio[0], ratio[1])
        return True, None if is_fraction or as_number(other) is None else False
    halves = [re.sub(r"\\text|[^apm]", "", m[2].casefold()) for m in colons]
    if parts[0] == parts[1]:
        return True, not all(halves) or halves[0] == halves[1]
    is_same_ratio = len(parts[0]) == len(parts[1]) and not any(halves) and _proportional(*parts)
    return True, None if is_same_ratio else False


def _proportional(a: list[int], b: list[int]) -> bool:
    return all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True))


def _same_bases(a: str, b: str) -> tuple[bool, Verdict]:
    """2516_8: without its base it is the same digits as long as the reference has the base, as the question did."""
    based = with_base(a), with_base(b)
    if not any(based):
        return False, None
    if all(based):
        (digits_a, base_a), (digits_b, base_b) = based
        if base_a == base_b:
            return True, digits_a == digits_b
        return True, None if _in_ten(digits_a, base_a) == _in_ten(digits_b, base_b) else False
    (digits, base), other = (based[0], b) if based[0] else (based[1], a)
    other = without_thousands(other)
    if not re.fullmatch(r"[0-9A-Za-z]{1,40}", other):
        return True, None if "_" in other else False
    has_same_digits = (other.upper().lstrip("0") or "0") == digits
    if base == 10 or (has_same_digits and based[1]):
        return True, has_same_digits
    return True, None if has_same_digits or _in_ten(digits, base) == as_number(other) else False


def _in_ten(digits: str, base: int) -> int | None:
    try:
        return int(digits, base)
    except ValueError:
        return None


def _same_words(a: str, b: str) -> tuple[bool, Verdict]:
    """Words by their letters, whatever their case; against a number they are wrong, unless they are its name."""
    are_words = [is_words(text) for text in (a, b)]
    if not any(are_words):
        return False, None
    words = [_plain_words(text) for text in (a, b)]
    if all(are_words):
        if words[0] == words[1]:
            return True, None if a != b and _may_be_products(a, b) else True
        if not _may_be_products(a, b):
            return True, None if _contains(*words) else False
        return (True, None) if len(a) > 2 and sorted(a) == sorted(b) else (len(a) > 2, False)
    if _MACRO.sub(r"\1", a) == _MACRO.sub(r"\1", b):
        return True, True
    word, other = (words[0], b) if are_words[0] else (words[1], a)
    number = as_number(without_thousands(quantity(other)[0]))
    if number is not None:
        return True, number == _NUMBER_WORDS[word] if word in _NUMBER_WORDS else False
    if _SYNONYMS.get(word) == key(other):
        return True, True
    original = a if are_words[0] else b
    if _may_be_products(original, original):
        return False, None
    return True, None if (_NUMBER_WORDS.keys() | {"half", "third", "quarter"}) & set(
        word.split()
    ) or r"\text" in other else False


def is_words(text: str) -> bool:
    """Text in a macro, or letters in a row that are more than one variable."""
    return _WORDS.fullmatch(text) is not None and (r"\text" in text or len(text) > 1)


def _plain_words(text: str) -> str:
    text = re.sub(r"[^a-z0-9 ()]+", " ", _MACRO.sub(r" \1 ", text).casefold())
    text = _ARTICLE.sub("", re.sub(r"\s+", " ", text).strip())
    return _SYNONYMS.get(text, text) if not text.startswith("(") else text.strip("()")


def _may_be_products(a: str, b: str) -> bool:
    pattern = rf"[A-Za-z]{{1,{_LONGEST_PRODUCT}}}"
    return all(re.fullmatch(pattern, text) and text.casefold() not in _SHORT_WORDS for text in (a, b))


def _contains(a: str, b: str) -> bool:
    """Whether one says what the other says, and more."""
    return len(a.split()) != len(b.split()) and (f" {a} " in f" {b} " or f" {b} " in f" {a} ")
