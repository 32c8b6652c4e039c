"""How far two texts are apart. rapidfuzz does the work."""

from __future__ import annotations

MISSING = "the content check needs rapidfuzz: pip install 'mvtrain[curate]'"


def normal(text: str) -> str:
    """Runs of white space are one space."""
    return " ".join(text.split())


def distance(a: str, b: str) -> float:
    """Levenshtein distance over the length of the longer text, both with normal white space: 0 to 1.

    Raises ImportError that names the extra where rapidfuzz is missing.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError:
        raise ImportError(MISSING) from None
    return Levenshtein.normalized_distance(normal(a), normal(b))


def changes(before: str, after: str) -> tuple[int, int, int]:
    """(characters added, characters cut, length of the longer text) from one text to the other, both normal."""
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError:
        raise ImportError(MISSING) from None
    before, after = normal(before), normal(after)
    kept = LCSseq.similarity(before, after)
    return len(after) - kept, len(before) - kept, max(len(before), len(after))
