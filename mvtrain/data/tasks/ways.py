"""Ways over roads: every road leads from one place to one other, and a way ends where a word stands that is no place.

A step is one word: look up in the question which road leads on from the last place, and copy where it goes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

from mvtrain.data.synthetic import PLACES
from mvtrain.data.tasks.steps import Case

COLOURS = ("red", "blue", "green", "black", "white", "brown", "pink", "gray")
NUM_PLACES = (2, 5)
"""On one way: between the lowest and the highest number, drawn."""

Way = tuple[str, ...]
"""The places from the start on, and at last the end."""


def draw_ways(source: random.Random, ends: Sequence[str], num_places: tuple[int, int] = NUM_PLACES) -> list[Way]:
    """A way to each end; no place stands on two of them."""
    lengths = [source.randint(*num_places) for _ in ends]
    places = iter(source.sample(PLACES, sum(lengths)))
    return [(*(next(places) for _ in range(length)), end) for length, end in zip(lengths, ends, strict=True)]


def question(source: random.Random, ways: Iterable[Way], asked: str) -> str:
    """All roads in an order of their own, where the ways start, and what is asked."""
    ways = list(ways)
    roads = [road for way in ways for road in pairwise(way)]
    source.shuffle(roads)
    starts = "\n".join(f"{number}: {way[0]}" for number, way in enumerate(ways, start=1))
    return "Roads: " + " , ".join(f"{start} {end}" for start, end in roads) + f" .\n{starts}\n{asked}"


def case(number: int, way: Way) -> Case:
    """Follow one way."""
    return Case(str(number), f" {way[0]}", (f" {' '.join(way)} {number}= {way[-1]}",))


def results(ways: Iterable[Way]) -> str:
    return " ".join(f"{number}= {way[-1]}" for number, way in enumerate(ways, start=1))
