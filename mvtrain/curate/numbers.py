"""Numbers in texts, the same however they are written. Standard library only."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<=\d)(?:,|\{,\})(?=\d{3}(?!\d))")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)(\d)")
_NO_ZERO = re.compile(r"(?<![\d.])\.(?=\d)")


def plain_numbers(text: str) -> str:
    """The text with 1,000 as 1000, \\tfrac12 as its two numbers, and .5 as 0.5."""
    return _NO_ZERO.sub("0.", _SHORT_FRACTION.sub(r" \1 \2 ", _THOUSANDS.sub("", text)))


def numbers_in(text: str) -> list[str]:
    """Without signs, in order; the digits of a word such as 12th count too."""
    return _NUMBER.findall(plain_numbers(text))
