"""Independent ways, all of whose ends are asked for: every path matters, and the conclusion gathers them."""

from __future__ import annotations

import random

from mvtrain.data.tasks.steps import Split, TaskProblem
from mvtrain.data.tasks.ways import COLOURS, case, draw_ways, question, results


def draw(source: random.Random, num_ways: int) -> TaskProblem:
    ways = draw_ways(source, [source.choice(COLOURS) for _ in range(num_ways)])
    asked = question(source, ways, "Where do all ways end?")
    split = Split(tuple(case(number, way) for number, way in enumerate(ways, start=1)), f" {results(ways)}")
    return TaskProblem.of(asked, results(ways), [split], "collective", num_ways)
