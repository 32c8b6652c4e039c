"""Layout -> runs and rectangles: the geometry that plans are made of.

A *run* is a stretch of queries in which each token sees the same earlier keys, then the run itself up to itself: plain
causal attention at its end, whole key ranges before. A *rectangle* is a stretch of queries of which every one sees a
whole stretch of keys. Rectangles come in *rounds*: within a round no two share a query or a key, so one varlen call
computes a round.

The rectangles of a document are found by cutting it. Where everything after a point sees everything before it, as at
the end of a block, that is one rectangle, and both sides are cut further by themselves. Where there is no such point,
the piece is some text and the paths that follow it: paths 2 and up see the text (one rectangle) and nothing of each
other, so each is cut further by itself.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from mvtrain.layout import Layout

Range = tuple[int, int]


class Run(NamedTuple):
    """Queries [start, end); each sees the key ranges `sees`, then [start, itself]."""

    start: int
    end: int
    sees: tuple[Range, ...]


class Rectangle(NamedTuple):
    """Queries [q_start, q_end) see all of keys [k_start, k_end)."""

    q_start: int
    q_end: int
    k_start: int
    k_end: int


def runs_of(layout: Layout) -> list[Run]:
    """The nodes of a layout, joined where one goes on as plain causal text after the other."""
    runs: list[Run] = []
    for node in layout.nodes:
        if runs and _continues(runs[-1], node.start, node.sees):
            runs[-1] = runs[-1]._replace(end=node.end)
        else:
            runs.append(Run(node.start, node.end, node.sees))
    return runs


def rounds_of(runs: list[Run], documents: tuple[Range, ...]) -> list[list[Rectangle]]:
    """Rounds of rectangles, the largest rectangles of a document first; rectangles ascend within a round.

    Together they hold every visible (query, earlier run) pair of the isolated scheme. In the original scheme what the
    separators between paths see and are seen by stays out.
    """
    rounds: list[list[Rectangle]] = []
    pieces = [(first, last, 0) for first, last in _run_indices(runs, documents)]
    while pieces:
        first, last, depth = pieces.pop()
        rectangle, parts = _cut(runs, first, last)
        if rectangle is not None:
            rounds += [[] for _ in range(depth + 1 - len(rounds))]
            rounds[depth].append(rectangle)
            depth += 1
        pieces += [(a, b, depth) for a, b in parts]
    return [sorted(rectangles) for rectangles in rounds]


def visible_before(run: Run, rectangles: list[Rectangle]) -> tuple[Range, ...]:
    """The keys before its own that a run sees and that none of `rectangles` (disjoint, all of them its own) holds."""
    taken = sorted((r.k_start, r.k_end) for r in rectangles)
    left: list[Range] = []
    for start, end in run.sees:
        for a, b in taken:
            if start <= a and b <= end:
                if a > start:
                    left.append((start, a))
                start = b
        if end > start:
            left.append((start, end))
    return tuple(left)


def _continues(run: Run, start: int, sees: tuple[Range, ...]) -> bool:
    if not sees or sees[-1][1] != start or run.end != start:
        return False
    (*before, (last_start, _)) = sees
    if run.sees and run.sees[-1][1] == run.start:
        return (*before, (last_start, run.start)) == run.sees
    return last_start == run.start and tuple(before) == run.sees


def _run_indices(runs: list[Run], documents: tuple[Range, ...]) -> list[Range]:
    starts = [run.start for run in runs]
    firsts = [bisect_right(starts, start) - 1 for start, _ in documents]
    return list(pairwise([*firsts, len(runs)]))


def _cut(runs: list[Run], first: int, last: int) -> tuple[Rectangle | None, list[Range]]:
    """Cut runs [first, last): the rectangle between the parts, if any, and the parts to be cut further."""
    if last - first < 2:
        return None, []
    start, end = runs[first].start, runs[last - 1].end
    prefixes = [_prefix_end(runs[i], start) for i in range(first + 1, last)]
    cut = _best_cut(runs, first, last, prefixes)
    if cut is not None:
        middle = runs[cut].start
        return Rectangle(middle, end, start, middle), [(first, cut), (cut, last)]
    text_end = min(prefixes)
    second_path = first + 1 + prefixes.index(text_end)
    paths = _split_paths(runs, second_path, last)
    rectangle = Rectangle(runs[second_path].start, end, start, text_end) if text_end > start else None
    return rectangle, [(first, second_path), *paths]


def _best_cut(runs: list[Run], first: int, last: int, prefixes: list[int]) -> int | None:
    """The run from which on all see all that is before it, such that the rectangle is largest; None without one."""
    start, end = runs[first].start, runs[last - 1].end
    best, best_area, seen_by_rest = None, 0, end
    for i in range(last - 1, first, -1):
        seen_by_rest = min(seen_by_rest, prefixes[i - first - 1])
        middle = runs[i].start
        area = (end - middle) * (middle - start)
        if seen_by_rest >= middle and area > best_area:
            best, best_area = i, area
    return best


def _split_paths(runs: list[Run], first: int, last: int) -> list[Range]:
    """Cut sibling paths apart: a new one begins with the first run that does not see the start of the one before."""
    borders = [first]
    for i in range(first + 1, last):
        begin = runs[borders[-1]].start
        if _prefix_end(runs[i], begin) == begin:
            borders.append(i)
    return list(pairwise([*borders, last]))


def _prefix_end(run: Run, start: int) -> int:
    """Up to where a run sees everything from key `start` on; `start` itself if it does not see that."""
    place = bisect_right(run.sees, (start, run.end)) - 1
    return run.sees[place][1] if place >= 0 and run.sees[place][1] > start else start
