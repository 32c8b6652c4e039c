"""One forward pass: which tokens go through the model, and what each of them sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvtrain.engine.branches import Branch


class Piece(NamedTuple):
    """Consecutive tokens of one node that see the same nodes, and each of them the own node up to itself."""

    row: int
    """The row of the cache they are written into."""
    node: int
    index: int
    """Of the first token, in its node."""
    tokens: list[int]
    positions: Sequence[int]
    limits: np.ndarray
    """(nodes,) int32; the entry of the own node is not used."""
    samples: Branch | None = None
    """The branch that gets its next token from the last token's logits, if any."""


def pieces_of(branch: Branch, row: int, start: int, end: int) -> list[Piece]:
    """Indices [start, end) of a branch, from now on fed; cut where the branch begins to see joined paths."""
    pieces = []
    branch.num_fed = end
    while start < end:
        limits, until = branch.limits_at(start)
        until = min(until, end)
        ids, positions = branch.ids_between(start, until), branch.positions_between(start, until)
        samples = branch if until == branch.next_index and branch.needs_token else None
        pieces.append(Piece(row, branch.node, start, ids, positions, limits, samples))
        start = until
    return pieces
