"""Whether a path stands alone: it speaks of no sibling, and uses no result of one. Standard library only.

Rules find what a rewriting is meant to remove and what shows that a grouping was wrong; they cannot prove independence.
The words are English; of other languages only numbers and labels are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mvtrain.curate.numbers import numbers_in, plain_numbers
from mvtrain.curate.records import Complaint

_KINDS = r"path|branch|case|sub-?task|sub-?problem|approach|method|candidate|option|attempt"
_ORDER = r"first|second|third|last|next|following"
_ANYWHERE = re.compile(
    # "in the first case" may be one of its own; "as in the first case" is another's.
    rf"\b(?:as|like|unlike|than)\s+(?:\w+\s+){{0,3}}the\s+(?:{_ORDER})\s+(?:{_KINDS})s?\b"
    rf"|\bthe\s+(?:previous|preceding|earlier|prior)\s+(?:{_KINDS})s?\b"
    rf"|\bthe\s+other\s+(?:{_KINDS.replace('path|', '')})s?\b",
    re.IGNORECASE,
)
_POINTING = (
    r"(?:like|as in|from|using|with|than|unlike|see|recall|to|results? of|found in|shown in|similar to)\s+(?:the\s+)?"
)
_NAMED = re.compile(rf"\b(?:{_POINTING})?(?:{_KINDS}|outline)\s+\d+(?:\.\d+)*\b(?!\s+of\b)", re.IGNORECASE)
_IN_THE_FIRST_SENTENCE = re.compile(
    r"\b(?:similarly|likewise|analogously|in the same way|by the same (?:argument|reasoning|method|token)"
    r"|in contrast|by contrast|the latter|the former|same (?:as|here|thing)"
    r"|(?:that|this|it) (?:did not|didn't|does not|doesn't) work|another (?:approach|method|way)"
    r"|(?:as|like) (?:we \w+ )?(?:before|above|previously|earlier))\b"
    r"|\A\W*(?:also|again|otherwise|this time|alternatively|on the other hand|instead(?!\s+of))\b(?=,|\s)"
    "(?!\\s+\\w+\\s+is\\b)|\u540c\u7406|\u7c7b\u4f3c|\u540c\u6837",  # Chinese: likewise, in three forms
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:/\d+)?(?![\w]|\.\d)")
_DISTINCT = re.compile(r"\d{3,}|\d+[./]\d+")
_OPENING = r"\s*[\\({\[$]*\s*(?:\w+\{)?-?\Z"
_BEHIND_A_SIGN = re.compile(rf"(?:=|\\approx|≈|\\to|→|\\implies|⇒|:){_OPENING}")
_BEHIND_A_WORD = re.compile(
    r"\b(?:is|are|gives?|yields?|equals?|so|comes to|makes?|gets?|obtain|becomes?|find|have|leaves?|leaving|total"
    rf"|total of){_OPENING}",
    re.IGNORECASE,
)
_OPERATOR = re.compile(r"\s*(?:[-+*/\u00d7\u00b7^]|\\cdot|\\times|times\b|plus\b|minus\b)")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def references(text: str, label: str, siblings: Sequence[str]) -> Iterator[Complaint]:
    """Words of a path that point out of it: at a sibling by its label or order, or back to what is not in it.

    Args:
        label: the path's own; siblings: those of the others in its block.
    """
    for match in _ANYWHERE.finditer(text):
        yield Complaint("reference", f"it points at another path or at what is not in it: {match.group()!r}")
    start = _SENTENCE.split(text.strip(), maxsplit=1)[0]
    for match in _IN_THE_FIRST_SENTENCE.finditer(start):
        yield Complaint("reference", f"its first sentence goes on from something that is not in it: {match.group()!r}")
    for sibling in siblings:
        number = re.escape(sibling.rpartition(".")[2])
        named = re.search(
            rf"\b(?:path|branch|subtask|outline)\s+(?:{re.escape(sibling)}|{number})\b", text, re.IGNORECASE
        )
        pointed = rf"\b{_POINTING}(?:{_KINDS})\s+{number}\b(?!\s+of\b)"
        named = named or re.search(pointed, text, re.IGNORECASE)
        if named and sibling != label:
            yield Complaint("reference", f"it speaks of path {sibling}: {named.group()!r}")


def without_pointers(text: str) -> str:
    """The text without words that name another path by its number, "as in case 1" or "path 2"."""
    return _NAMED.sub(" ", text)


def used_results(text: str, known: str, siblings: Sequence[tuple[str, str]]) -> Iterator[Complaint]:
    """Results of siblings that a path uses without having come to them itself.

    A result is a sibling's last number, if it is at least 100 or has a fraction: smaller ones stand in many paths by
    chance. The path uses it if it is not known, and where it first appears is not what something else comes to.

    Args:
        known: what the path may use: the question, the text before the block, its outline.
        siblings: (label, text) of the other paths.
    """
    text, own = plain_numbers(text), {}
    for match in _NUMBER.finditer(text):
        own.setdefault(match.group(), match.start())
    given = {*_NUMBER.findall(plain_numbers(known)), *numbers_in(known)}
    for label, other in siblings:
        for number in _results(other):
            place = own.get(number)
            if place is not None and number not in given and not _is_derived(text, place, place + len(number)):
                shown = " ".join(text[max(0, place - 30) : place + 30].split())
                yield Complaint("dependent", f"it uses {number}, the result of path {label}: '{shown}'")


def _is_derived(text: str, start: int, end: int) -> bool:
    """Whether a number stands behind an equals sign or its like, or behind "is" and its like without being used."""
    before = text[max(0, start - 40) : start]
    return bool(_BEHIND_A_SIGN.search(before) or (_BEHIND_A_WORD.search(before) and not _OPERATOR.match(text, end)))


def _results(text: str) -> list[str]:
    """The last number, if it is one that does not come up by chance: from 100 on, or with a fraction."""
    numbers = _NUMBER.findall(plain_numbers(text))
    return numbers[-1:] if numbers and _DISTINCT.fullmatch(numbers[-1]) else []
