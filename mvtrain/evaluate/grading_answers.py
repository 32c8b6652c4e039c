"""Where a response's answer stands, and what of its writing does not matter. Standard library only."""

from __future__ import annotations

import re
from fractions import Fraction

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")
_THINK = re.compile(r"<(/?)[Tt]hink>")
_BLOCK = re.compile(r"<(/?)Parallel>")
_ANSWER_LINE = re.compile(r"answer(?:\s+is|\s*:)+\s*(.+)", re.IGNORECASE)
_EMPHASIS = re.compile(r"^(\*\*|__|\*|`)(.*)\1$", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(
    r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|displaystyle|left(?![a-z])|right(?![a-z])|[Bb]igg?[lr]?(?![a-z]))|~"
)
_THOUSANDS = re.compile(r"(?<![\d.,])(\d{1,3})((?:(?:,|\{,\}|\\,)\d{3})+)(?![\d,])")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_PLAIN_NUMBER = re.compile(r"([+-]?)(\d+(?:\.\d*)?|\.\d+)(?:/(\d+))?")
_MIXED_NUMBER = re.compile(r"([+-]?)(\d+)\s*\\[dtc]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)(?:(?:\\times|\\cdot)10\^\{?|[eE])([+-]?\d{1,3})\}?")
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WITH_BASE = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
MOST_DIGITS = 400
LONGEST_LINE = 120
"""Characters of an answer line; what is longer tells how to get there, and may be cut off on the way."""


def final_answer(response: str) -> str | None:
    """What follows the reasoning says: the last complete box, else the text of the last answer line.

    None where there is neither, where the reasoning never ends, or where the last box is cut off.
    """
    conclusion = after_reasoning(response)
    if conclusion is None:
        return None
    found = list(_BOX.finditer(conclusion))
    if found:
        boxes = [_braced(conclusion, box.end()) for box in found]
        return next((box.strip() for box in reversed(boxes) if box is not None), None)
    lines = [line for line in _ANSWER_LINE.findall(conclusion) if line.strip(" *_$.")]
    return _undress(lines[-1]) if lines and len(lines[-1]) <= LONGEST_LINE else None


def after_reasoning(response: str) -> str | None:
    """The text behind the last `</Think>`, else behind the last block at top level, else all of it.

    None where a `<Think>` or a block is still open: cut-off text has no answer, however it may read.
    """
    think = list(_THINK.finditer(response))
    if think:
        return response[think[-1].end() :] if think[-1].group(1) else None
    depth, end = 0, 0
    for tag in _BLOCK.finditer(response):
        depth = max(0, depth + (-1 if tag.group(1) else 1))
        end = tag.end()
    return None if depth else response[end:]


def last_box(text: str) -> str | None:
    """The content of the last complete box of any text, for references."""
    boxes = [_braced(text, box.end()) for box in _BOX.finditer(text)]
    return next((box.strip() for box in reversed(boxes) if box is not None), None)


def _braced(text: str, start: int) -> str | None:
    """What stands in the braces that open at `start`; None where they do not close."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] in "{}" and not _is_escaped(text, index):
            depth += 1 if text[index] == "{" else -1
            if depth == 0:
                return text[start + 1 : index]
    return None


def _is_escaped(text: str, index: int) -> bool:
    num = 0
    while index - num > 0 and text[index - num - 1] == "\\":
        num += 1
    return num % 2 == 1


def _undress(line: str) -> str:
    """An answer line without the full stop, emphasis and dollar signs around it."""
    before, text = None, line.strip()
    while text != before:
        before = text
        text = text.strip().removesuffix(".").strip()
        text = _EMPHASIS.sub(r"\2", text)
        for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and inner and opening not in inner:
                text = inner
    return text.removeprefix("**").removesuffix("**").strip()


def normalise(answer: str) -> str:
    """An answer without what does not change its meaning: dollar signs, spacing, thousands separators, text macros."""
    text = _undress(answer.strip())
    text = text.replace("\\$", "").replace("\\%", "%").replace("$", "")
    text = re.sub("[\u2212\u2013]", "-", text)  # minus sign, en dash
    text = _THOUSANDS.sub(lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = _SPACING.sub(" ", text)
    text = re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", ",", text)
    text = _TEXT.sub(r" \1 ", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree", r"^\\circ", text)
    text = re.sub(r"\\[dtc]frac", r"\\frac", text)
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"(\d+(?:\.\d+)?)\^\\circ", r"{(\\frac{\1}{180} \\pi)}", text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip()


def as_number(text: str) -> Fraction | None:
    """A plain number of a normalised answer, exactly: 12, -0.5, 3/4, \\frac34, 2\\frac12, 1.5\\times10^3."""
    text = text.replace(" ", "")
    if len(text) > MOST_DIGITS:
        return None
    if mixed := _MIXED_NUMBER.fullmatch(text):
        sign, whole, a, b, c, d = mixed.groups()
        return _signed(sign, int(whole) + Fraction(int(a or b), int(c or d))) if int(c or d) else None
    if scientific := _SCIENTIFIC.fullmatch(text):
        return Fraction(scientific[1]) * Fraction(10) ** int(scientific[2])
    if repeating := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = repeating.groups()
        scale = 10 ** len(fixed)
        value = Fraction(int(whole + fixed or "0"), scale) + Fraction(int(period), scale * (10 ** len(period) - 1))
        return _signed(sign, value)
    fraction = re.fullmatch(r"([+-]?)" + _FRACTION.pattern, text)
    if fraction:
        sign, a, b, c, d = fraction.groups()
        return _signed(sign, Fraction(int(a or b), int(c or d))) if int(c or d) else None
    plain = _PLAIN_NUMBER.fullmatch(text)
    if plain is None or (plain[3] is not None and not int(plain[3])):
        return None
    return _signed(plain[1], Fraction(plain[2].rstrip(".") or "0") / int(plain[3] or 1))


def with_base(text: str) -> tuple[str, int] | None:
    """(digits, base) of a number such as 2516_8."""
    match = _WITH_BASE.fullmatch(text.replace(" ", ""))
    return (match[1].upper().lstrip("0"), int(match[2][:4])) if match and match[1][0].isdigit() else None


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
