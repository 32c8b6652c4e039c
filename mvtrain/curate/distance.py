"""How far two texts are apart. rapidfuzz does the work."""

from __future__ import annotations


def normal(text: str) -> str:
    """Runs of white space are one space."""
    return " ".join(text.split())


def distance(a: str, b: str) -> float:
    """Levenshtein distance over the length of the longer text, both with normal white space: 0 to 1.

    Raises ImportError that names the extra where rapidfuzz is missing.
    """
    edits, longer = edits_between(a, b)
    return edits / longer if longer else 0.0


def edits_between(a: str, b: str) -> tuple[int, int]:
    """(characters inserted, deleted or replaced; length of the longer text), both with normal white space."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise ImportError("the content check needs rapidfuzz: pip install 'mvtrain[curate]'") from None
    a, b = normal(a), normal(b)
    return Levenshtein.distance(a, b), max(len(a), len(b))
