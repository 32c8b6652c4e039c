"""Random packed layouts for the tests of attention."""

from __future__ import annotations

from mvtrain.layout import Layout, Scheme
from tests.brute_force import random_document
from tests.tiny import tiny_tags

TAG = tiny_tags()


def random_layout(seed: int, scheme: Scheme = "isolated") -> Layout:
    """One to four documents of unequal length, with up to five blocks next to each other and four levels of nesting."""
    documents = [
        random_document(
            seed * 10 + i, TAG, scheme, max_depth=1 + seed % 4, max_blocks=1 + (seed + i) % 5, max_paths=2 + seed % 5
        )
        for i in range(1 + seed % 4)
    ]
    return Layout.pack([Layout.from_ids(document.ids, TAG, scheme) for document in documents])
