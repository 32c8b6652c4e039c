"""Layout -> a plan: a few varlen calls whose joined result is Multiverse Attention.

The first call is causal and covers every query. With `levels=0` it is the only one (the gather form): behind each
other stand, for each run, the keys it sees and then its own, and a causal mask aligned at the bottom right, which is
what varlen flash kernels do, is exactly the run's visibility. That copies keys many times over. Each level takes one
round of rectangles out of it into a call of its own without a mask and without copies (the merge form); the results
are joined by their log-sum-exp.

Shape suffixes: B sequences of a call, S gathered keys.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from mvtrain.attention.rectangles import Range, Rectangle, Run, rounds_of, runs_of, visible_before
from mvtrain.layout import Layout


@dataclass(frozen=True, eq=False)
class Call:
    """One varlen call: sequence b has `lengths_q[b]` queries and `lengths_k[b]` keys; either may be 0.

    Queries are the rows [a, b) of `query_rows`, keys those of `key_rows`, or the rows `key_index_S` where given.
    """

    causal: bool
    """Causal masks are aligned at the bottom right: the last query of a sequence sees all of its keys."""
    query_rows: Range
    key_rows: Range
    lengths_q: tuple[int, ...]
    lengths_k: tuple[int, ...]
    cu_seqlens_q: torch.Tensor  # (B + 1,) int32
    cu_seqlens_k: torch.Tensor  # (B + 1,) int32
    key_index_S: torch.Tensor | None  # int64

    @property
    def max_seqlen_q(self) -> int:
        # At 1, flash attention 2 takes the batch for a decoding step and reads no cu_seqlens_q.
        return max(2, *self.lengths_q)

    @property
    def max_seqlen_k(self) -> int:
        return max(2, *self.lengths_k)

    @property
    def num_gathered(self) -> int:
        return 0 if self.key_index_S is None else len(self.key_index_S)

    def to(self, device: torch.device) -> Call:
        index = self.key_index_S
        return replace(
            self,
            cu_seqlens_q=self.cu_seqlens_q.to(device, non_blocking=True),
            cu_seqlens_k=self.cu_seqlens_k.to(device, non_blocking=True),
            key_index_S=None if index is None else index.to(device, non_blocking=True),
        )

    def pieces(self) -> Iterator[tuple[Range, list[Range]]]:
        """Per sequence with queries and keys: its query range, and its keys as ranges, in order."""
        ranges = _ranges(self.key_index_S) if self.key_index_S is not None else None
        query, key = self.query_rows[0], self.key_rows[0]
        for length_q, length_k in zip(self.lengths_q, self.lengths_k, strict=True):
            keys = [(key, key + length_k)] if ranges is None else _take(ranges, length_k)
            if length_q and length_k:
                yield (query, query + length_q), keys
            query, key = query + length_q, key + length_k


@dataclass(frozen=True, eq=False)
class Plan:
    """The calls of one layout, the causal one first. Tensors live on the host until `on` copies them."""

    calls: tuple[Call, ...]

    @property
    def levels(self) -> int:
        return len(self.calls) - 1

    @cached_property
    def _copies(self) -> dict[torch.device, Plan]:
        return {}

    def on(self, device: torch.device) -> Plan:
        """The same plan with its tensors on `device`, copied once."""
        if device.type == "cpu":
            return self
        if device not in self._copies:
            self._copies[device] = Plan(tuple(call.to(device) for call in self.calls))
        return self._copies[device]


class Geometry:
    """Runs and rounds of a layout: all that its plans, of any number of levels, are made of."""

    def __init__(self, layout: Layout) -> None:
        self.num_tokens = layout.num_tokens
        self.runs = runs_of(layout)
        self.rounds = rounds_of(self.runs, layout.documents)
        self._leftovers: dict[int, list[tuple[Range, ...]]] = {}
        self._plans: dict[int, Plan] = {}

    @property
    def max_levels(self) -> int:
        return len(self.rounds)

    def leftovers(self, levels: int) -> list[tuple[Range, ...]]:
        """Per run, the earlier keys it sees that no rectangle of the first `levels` rounds holds."""
        if levels not in self._leftovers:
            holding: list[list[Rectangle]] = [[] for _ in self.runs]
            for rectangles in self.rounds[:levels]:
                for i, rectangle in _runs_inside(self.runs, rectangles):
                    holding[i].append(rectangle)
            held_by = zip(self.runs, holding, strict=True)
            self._leftovers[levels] = [visible_before(run, rectangles) for run, rectangles in held_by]
        return self._leftovers[levels]

    def plan(self, levels: int) -> Plan:
        """The plan with this many levels, built once; from `max_levels` on there is nothing left to take out."""
        if levels not in self._plans:
            causal = _causal_call(self.runs, self.leftovers(levels), self.num_tokens)
            self._plans[levels] = Plan((causal, *(_rectangle_call(round) for round in self.rounds[:levels])))
        return self._plans[levels]

    def shapes(self, levels: int) -> list[tuple[int, int, bool]]:
        """(queries, keys, causal) of all that a plan computes, earlier keys and own keys of a run apart."""
        shapes = []
        for run, before in zip(self.runs, self.leftovers(levels), strict=True):
            length = run.end - run.start
            shapes.append((length, length, True))
            if before:
                shapes.append((length, sum(b - a for a, b in before), False))
        shapes += [(r.q_end - r.q_start, r.k_end - r.k_start, False) for round in self.rounds[:levels] for r in round]
        return shapes

    def num_gathered(self, levels: int) -> int:
        """Keys that the causal call copies: none, or its own ones too."""
        num_before = sum(b - a for before in self.leftovers(levels) for a, b in before)
        return num_before + self.num_tokens if num_before else 0

    def num_merged(self, levels: int) -> int:
        """Rows that are joined or added after the first call."""
        return sum(round[-1].q_end - round[0].q_start for round in self.rounds[:levels])


def check_plan(plan: Plan, layout: Layout) -> None:
    """Raise AssertionError unless the plan's pieces hold every visible pair of the layout once, and no other pair.

    Linear in nodes and pieces, so it can be called on layouts of any size.
    """
    nodes = layout.nodes
    starts = [node.start for node in nodes]
    earlier: list[list[Range]] = [[] for _ in nodes]
    own = [0] * len(nodes)
    for call in plan.calls:
        for (start, end), keys in call.pieces():
            if call.causal:
                *keys, last = _split_end(keys, end - start)
                assert last == (start, end), f"queries {start}:{end} end with keys {last}, not with their own"
            for i in range(bisect_right(starts, start) - 1, bisect_left(starts, end)):
                node = nodes[i]
                assert start <= node.start and node.end <= end, f"queries {start}:{end} cut node {node}"
                earlier[i] += keys
                if call.causal:
                    own[i] += 1
                    earlier[i] += [(start, node.start)] * (start < node.start)
    for node, ranges, times in zip(nodes, earlier, own, strict=True):
        assert times == 1, f"node {node} sees itself {times} times"
        assert _joined(ranges) == node.sees, f"node {node} is given keys {sorted(ranges)}"


def _causal_call(runs: list[Run], before: list[tuple[Range, ...]], num_tokens: int) -> Call:
    lengths_q = [run.end - run.start for run in runs]
    ranges = [(*leftover, (run.start, run.end)) for run, leftover in zip(runs, before, strict=True)]
    index = torch.cat([torch.arange(a, b) for parts in ranges for a, b in parts]) if any(before) else None
    lengths_k = [sum(b - a for a, b in parts) for parts in ranges]
    return _call(True, (0, num_tokens), (0, num_tokens), lengths_q, lengths_k, index)


def _rectangle_call(rectangles: list[Rectangle]) -> Call:
    """Between rectangles stand sequences without keys and sequences without queries, so that nothing is copied."""
    lengths_q, lengths_k = [], []
    query, key = rectangles[0].q_start, rectangles[0].k_start
    for rectangle in rectangles:
        for gap in ((0, rectangle.k_start - key), (rectangle.q_start - query, 0)):
            if any(gap):
                lengths_q.append(gap[0])
                lengths_k.append(gap[1])
        query, key = rectangle.q_end, rectangle.k_end
        lengths_q.append(query - rectangle.q_start)
        lengths_k.append(key - rectangle.k_start)
    query_rows, key_rows = (rectangles[0].q_start, query), (rectangles[0].k_start, key)
    return _call(False, query_rows, key_rows, lengths_q, lengths_k, None)


def _call(
    causal: bool,
    query_rows: Range,
    key_rows: Range,
    lengths_q: list[int],
    lengths_k: list[int],
    index: torch.Tensor | None,
) -> Call:
    cumulative = [torch.tensor([0, *lengths]).cumsum(0).to(torch.int32) for lengths in (lengths_q, lengths_k)]
    return Call(causal, query_rows, key_rows, tuple(lengths_q), tuple(lengths_k), *cumulative, index)


def _runs_inside(runs: list[Run], rectangles: list[Rectangle]) -> Iterator[tuple[int, Rectangle]]:
    """(number of a run, the rectangle that holds its queries), for ascending rectangles."""
    remaining = iter(rectangles)
    rectangle = next(remaining, None)
    for i, run in enumerate(runs):
        while rectangle is not None and rectangle.q_end <= run.start:
            rectangle = next(remaining, None)
        if rectangle is not None and rectangle.q_start <= run.start:
            yield i, rectangle


def _ranges(index_S: torch.Tensor) -> list[Range]:
    """The rows of an index as ascending ranges [a, b), in its order."""
    breaks = (index_S.diff() != 1).nonzero().flatten()
    starts = index_S[torch.cat([torch.tensor([0]), breaks + 1])].tolist()
    ends = index_S[torch.cat([breaks, torch.tensor([len(index_S) - 1])])].tolist()
    return [(a, b + 1) for a, b in zip(starts, ends, strict=True)][::-1]


def _take(stack: list[Range], length: int) -> list[Range]:
    """Take ranges of `length` rows together off the end of a reversed list."""
    taken = []
    while length:
        a, b = stack.pop()
        if b - a > length:
            stack.append((a + length, b))
            b = a + length
        taken.append((a, b))
        length -= b - a
    return taken


def _split_end(ranges: list[Range], length: int) -> list[Range]:
    """The same ranges, with the last `length` rows as one range at the end, if they are one."""
    *before, (a, b) = ranges
    return [*before, *([(a, b - length)] if b - a > length else []), (max(a, b - length), b)]


def _joined(ranges: list[Range]) -> tuple[Range, ...]:
    """Ascending ranges, joined where they touch; ranges that overlap stay apart, so they never equal a node's."""
    joined: list[Range] = []
    for a, b in sorted(ranges):
        if joined and joined[-1][1] == a:
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return tuple(joined)
