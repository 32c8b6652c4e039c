"""Token counts -> packs -> optimizer steps: pure functions, the same on every rank and for every world size.

A *pack* is a list of examples that are read behind each other as one sequence; a *step* is the packs between two
updates of the weights.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Step:
    """The packs of one optimizer step, over all ranks."""

    phase: int
    """Number of the phase (of the epoch, in plain training), from 0."""
    packs: tuple[tuple[int, ...], ...]
    """Indices of examples. The last step of a phase may have fewer packs than the others."""
    num_tokens: int


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest example first, each into the fullest pack that still has room for it.

    Args:
        lengths: tokens of each example.
        capacity: tokens a pack may hold.

    Returns:
        Lists of indices into `lengths`. Every index stands in exactly one; no example is cut or dropped. Equal lengths
        are taken in order, and of equally full packs the one that was opened first.

    Raises:
        ValueError: an example is empty or longer than `capacity`.
    """
    lengths = [int(length) for length in lengths]
    _check_lengths(dict(enumerate(lengths)), capacity)
    packs: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, pack) of packs that some example may still fit into, ascending
    least = min(lengths, default=0)
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        place = bisect_left(free, (length, -1))
        if place < len(free):
            room, number = free.pop(place)
            packs[number].append(index)
        else:
            room, number = capacity, len(packs)
            packs.append([index])
        if room - length >= least:
            insort(free, (room - length, number))
    return packs


def plan_steps(
    phases: Iterable[Sequence[int]],
    lengths: Sequence[int],
    capacity: int,
    packs_per_step: int,
    seed: int = 42,
    *,
    max_tokens: int | None = None,
    costs: Sequence[int] | None = None,
    window: int = 8,
) -> list[Step]:
    """Pack every phase by itself and cut its packs, in an order drawn from (seed, phase), into steps.

    Args:
        phases: indices of examples, phase by phase; may be endless if `max_tokens` is given.
        lengths: tokens of each example.
        capacity: tokens a pack may hold.
        packs_per_step: world size x micro-batch x gradient accumulation. The packs do not depend on it, only their
            division into steps does; a step never mixes phases.
        max_tokens: the plan ends with the first step that brings it to this many tokens, or with the phases.
        costs: what each example costs a rank, for instance `Layout.num_visible_pairs`. If given, packs of like cost
            are put into one step, within windows of `window` steps, so that ranks wait less for each other.

    Raises:
        ValueError: an example of a phase is longer than `capacity`, or a number is below 1.
    """
    for name, value in (("packs_per_step", packs_per_step), ("max_tokens", max_tokens), ("window", window)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    steps: list[Step] = []
    num_tokens = 0
    for number, phase in enumerate(phases):
        random = np.random.default_rng((seed, number))
        packs = _pack_phase(phase, lengths, capacity)
        packs = [packs[i] for i in random.permutation(len(packs))]
        groups = [packs[i : i + packs_per_step] for i in range(0, len(packs), packs_per_step)]
        if costs is not None:
            groups = _alike(groups, costs, window, random)
        for group in groups:
            steps.append(Step(number, tuple(group), sum(int(lengths[i]) for members in group for i in members)))
            num_tokens += steps[-1].num_tokens
            if max_tokens is not None and num_tokens >= max_tokens:
                return steps
    return steps


def rank_packs(step: Step, rank: int, world_size: int, packs_per_rank: int | None = None) -> list[tuple[int, ...]]:
    """The packs of one rank: every `world_size`-th, so that packs next to each other run at the same time.

    All ranks get equally many: `packs_per_rank` (micro-batch x accumulation), or by default as many as the fullest
    rank. What is missing from the last step of a phase are empty packs; a rank runs them to take part in collectives.

    Raises:
        ValueError: no such rank, or the step has more packs than the ranks together may hold.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} ranks")
    needed = -(-len(step.packs) // world_size)
    count = needed if packs_per_rank is None else packs_per_rank
    if count < needed:
        raise ValueError(f"a step of {len(step.packs)} packs needs {needed} a rank on {world_size} ranks, not {count}")
    mine = list(step.packs[rank::world_size])
    return mine + [()] * (count - len(mine))


def balance(step: Step, costs: Sequence[int], world_size: int, packs_per_micro_step: int = 1) -> float:
    """How busy the ranks are, 0 to 1: what they compute, over what they could while the slowest one computes.

    Ranks wait for each other in every micro-step, as ZeRO-3 does.

    Args:
        costs: of each example, for instance `Layout.num_visible_pairs`.
        packs_per_micro_step: of one rank.
    """
    pack_costs = [sum(int(costs[i]) for i in members) for members in step.packs]
    size = world_size * packs_per_micro_step
    slowest = 0
    for start in range(0, len(pack_costs), size):
        together = pack_costs[start : start + size]
        slowest += max(sum(together[rank::world_size]) for rank in range(world_size))
    return sum(pack_costs) / (world_size * slowest) if slowest else 1.0


def _check_lengths(lengths: dict[int, int], capacity: int) -> None:
    for index, length in lengths.items():
        if length > capacity:
            raise ValueError(
                f"example {index} has {length} tokens, a pack holds {capacity}; examples are never cut: "
                f"drop it, or raise the capacity to {max(lengths.values())} (the longest of {len(lengths)} examples)"
            )
        if length < 1:
            raise ValueError(f"example {index} has {length} tokens; an example has at least 1")


def _pack_phase(phase: Sequence[int], lengths: Sequence[int], capacity: int) -> list[tuple[int, ...]]:
    """Packs of one phase, in indices of examples."""
    _check_lengths({index: int(lengths[index]) for index in phase}, capacity)
    return [tuple(phase[i] for i in members) for members in pack([lengths[index] for index in phase], capacity)]


def _alike(
    groups: list[list[tuple[int, ...]]], costs: Sequence[int], window: int, random: np.random.Generator
) -> list[list[tuple[int, ...]]]:
    """The same packs in as many groups, with packs of like cost together. A short last group stays the last."""
    arranged: list[list[tuple[int, ...]]] = []
    for start in range(0, len(groups), window):
        sizes = [len(group) for group in groups[start : start + window]]
        packs = [members for group in groups[start : start + window] for members in group]
        packs.sort(key=lambda members: -sum(int(costs[i]) for i in members))
        edges = np.cumsum([0, *sizes])
        sorted_groups = [packs[a:b] for a, b in pairwise(edges)]
        full = [group for group in sorted_groups if len(group) == sizes[0]]
        arranged += [full[i] for i in random.permutation(len(full))] + sorted_groups[len(full) :]
    return arranged
