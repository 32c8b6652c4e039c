"""Which example is read in which phase: pure functions of counts and a seed, the same on every rank.

S are the sequential examples, P the parallel ones. Both are shuffled first. A set's *tenth* is the first tenth of the
shuffled set (rounded down) and its *rest* is what follows the tenth; its halves are the first and the second half (the
second is the longer one of an odd set). So an S and a P of equal size that hold the same questions in the same order
share the permutation, and a tenth-and-rest or half-and-half mixture is decided by place, not by question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

Kind = Literal["sequential", "parallel"]
Member = tuple[Kind, int]
"""An example: its set, and its index in that set as it was read."""

EIGHT_PHASES = (
    "S", "S", "90% S + 10% P", "50% S + 50% P", "50% S + 50% P (other halves)", "10% S + 90% P", "P", "P",
)  # fmt: skip
"""Names of the phases, in the order in which they are read."""


def phases(num_sequential: int, num_parallel: int, seed: int = 42) -> list[list[Member]]:
    """The eight phases, in order; in each, the members in the order in which they are read.

    The permutations are those of `datasets.Dataset.shuffle(seed)`: one for each whole set, and one more for each mixed
    phase over P's share followed by S's.

    Raises:
        ValueError: a set is empty.
    """
    for name, count in (("sequential", num_sequential), ("parallel", num_parallel)):
        if count < 1:
            raise ValueError(
                f"the curriculum mixes sequential and parallel examples, but there are {count} {name} ones"
            )
    s = _shuffled([("sequential", i) for i in range(num_sequential)], seed)
    p = _shuffled([("parallel", i) for i in range(num_parallel)], seed)
    s_tenth, p_tenth = num_sequential // 10, num_parallel // 10
    s_half, p_half = num_sequential // 2, num_parallel // 2
    return [
        list(s),
        list(s),
        _shuffled(p[:p_tenth] + s[s_tenth:], seed),
        _shuffled(p[:p_half] + s[:s_half], seed),
        _shuffled(p[p_half:] + s[s_half:], seed),
        _shuffled(p[p_tenth:] + s[:s_tenth], seed),
        list(p),
        list(p),
    ]


def as_indices(phases: Iterable[Sequence[Member]], num_sequential: int) -> list[list[int]]:
    """Members as indices into the sequential examples followed by the parallel ones."""
    offset = {"sequential": 0, "parallel": num_sequential}
    return [[offset[kind] + index for kind, index in phase] for phase in phases]


def epochs(num_examples: int, num_epochs: int | None = 1, seed: int = 42) -> Iterator[list[int]]:
    """Plain training: every epoch is one phase of all indices, in an order drawn from (seed, epoch).

    Args:
        num_epochs: None goes on for ever, for a plan that ends at a token budget.

    Raises:
        ValueError: there is no example.
    """
    if num_examples < 1:
        raise ValueError("there is no example to train on")
    return _epochs(num_examples, num_epochs, seed)


def _epochs(num_examples: int, num_epochs: int | None, seed: int) -> Iterator[list[int]]:
    epoch = 0
    while num_epochs is None or epoch < num_epochs:
        yield np.random.default_rng((seed, epoch)).permutation(num_examples).tolist()
        epoch += 1


def _shuffled(members: list[Member], seed: int) -> list[Member]:
    return [members[i] for i in np.random.default_rng(seed).permutation(len(members))]
