"""A chain of thought as numbered units, so that a model can point at text instead of typing it again."""

from __future__ import annotations

import re

LONGEST = 400
"""Characters of a line from which on its sentences are units of their own."""

_LINE = re.compile(r"[^\n]*\n\s*|[^\n]+\Z")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+|(?<=[\u3002\uff01\uff1f\uff1b])\s*")  # Chinese: no space behind


def split_units(chain: str, longest: int = LONGEST) -> tuple[str, ...]:
    """Lines, and sentences of long lines, each with the white space behind it: joined they are the chain."""
    units: list[str] = []
    for line in _LINE.findall(chain):
        units += _sentences(line) if len(line) > longest else [line]
    blank = next((i for i, unit in enumerate(units) if unit.strip()), len(units))
    return ("".join(units[: blank + 1]), *units[blank + 1 :]) if units else ()


def at_most(units: tuple[str, ...], most: int) -> tuple[str, ...]:
    """The same text in no more than `most` units: as many neighbours become one as it takes."""
    size = -(-len(units) // most)
    return tuple("".join(units[i : i + size]) for i in range(0, len(units), size)) if size > 1 else units


def _sentences(line: str) -> list[str]:
    """Cut after the white space behind a sentence, but not within a formula in dollars or between `\\(` and `\\)`."""
    cuts, start = [], 0
    for match in _SENTENCE_END.finditer(line):
        before = line[start : match.end()]
        in_formula = before.count("$") % 2 or before.count(r"\(") > before.count(r"\)")
        if not in_formula and match.end() < len(line):
            cuts.append(before)
            start = match.end()
    return [*cuts, line[start:]]


def numbered(units: tuple[str, ...], first: int = 1) -> str:
    """`[3] text` for every unit, a line or more each; `first` is the number of the first of them."""
    return "\n".join(f"[{number}] {unit.strip()}" for number, unit in enumerate(units, first))
