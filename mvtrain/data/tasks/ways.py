"""Ways over roads: every road leads from one place to one other, and a way ends where a word stands that is no place.

A road from river to stone is written "river: stone", in the question and on the way alike. So a step is to write the
last place as a beginning, one word for another, and to copy what follows that word in the question: it stands there
once.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

from mvtrain.data.synthetic import PLACES
from mvtrain.data.tasks.steps import Case

COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "gray")
NUM_NAMES = 24
"""Few, so that a small model meets each of them often; all of them at the highest difficulty."""
NUM_PLACES = (2, 4)
"""On one way: between the lowest and the highest number, drawn."""
MAX_WAYS = NUM_NAMES // NUM_PLACES[1]
"""No place stands on two ways."""

Way = tuple[str, ...]
"""The places from the start on, and at last the end."""


def draw_ways(source: random.Random, ends: Sequence[str], num_places: tuple[int, int] = NUM_PLACES) -> list[Way]:
    """A way to each end; no place stands on two of them."""
    lengths = [source.randint(*num_places) for _ in ends]
    places = iter(source.sample(PLACES[:NUM_NAMES], sum(lengths)))
    return [(*(next(places) for _ in range(length)), end) for length, end in zip(lengths, ends, strict=True)]


def question(source: random.Random, ways: Iterable[Way], asked: str) -> str:
    """All roads in an order of their own, where the ways start, and what is asked."""
    ways = list(ways)
    roads = [road for way in ways for road in pairwise(way)]
    source.shuffle(roads)
    starts = "\n".join(f"{number}: {way[0]}" for number, way in enumerate(ways, start=1))
    return "Roads: " + " , ".join(f"{start}: {end}" for start, end in roads) + f" .\n{starts}\n{asked}"


def case(number: int, way: Way) -> Case:
    """Follow one way: its start, every road on it, and where it ends."""
    roads = " ".join(f"{start}: {end}" for start, end in pairwise(way))
    return Case(str(number), f" {way[0]}", (f" {way[0]} {roads} {number}= {way[-1]}",))


def results(ways: Iterable[Way]) -> str:
    return " ".join(f"{number}= {way[-1]}" for number, way in enumerate(ways, start=1))
