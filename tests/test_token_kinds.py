"""Kinds of tokens, against reading the tags one by one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mvtrain.data.kinds import KINDS, token_kinds
from tests.tiny import tiny_tags

TAGS = tiny_tags()


def texts() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 200), max_size=4)


def documents() -> st.SearchStrategy[list[int]]:
    """Ids with paths nested to any depth."""

    def path(inner: list[list[int]]) -> list[int]:
        return [TAGS.parallel, *(id for body in inner for id in [TAGS.path, *body, TAGS.end_path]), TAGS.end_parallel]

    return st.recursive(
        texts(),
        lambda bodies: st.tuples(texts(), st.lists(bodies, min_size=1, max_size=3), texts()).map(
            lambda parts: [*parts[0], *path(parts[1]), *parts[2]]
        ),
        max_leaves=6,
    )


@given(documents())
def test_kinds(ids):
    expected, depth = [], 0
    for id in ids:
        depth += (id == TAGS.path) - (id == TAGS.end_path)
        expected.append("tag" if id in TAGS.as_tuple() else "path" if depth else "rest")
    assert [KINDS[kind] for kind in token_kinds(torch.tensor(ids, dtype=torch.long), TAGS).tolist()] == expected
