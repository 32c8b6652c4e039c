"""Several ways to try, of which all but one fail: the conclusion takes the one that works."""

from __future__ import annotations

import random

from mvtrain.data.tasks.steps import Split, TaskProblem
from mvtrain.data.tasks.ways import case, draw_ways, question, results

HOME, WALL = "home", "wall"


def draw(source: random.Random, num_ways: int) -> TaskProblem:
    good = source.randint(1, num_ways)
    ways = draw_ways(source, [HOME if number == good else WALL for number in range(1, num_ways + 1)])
    asked = question(source, ways, "Which way leads home?")
    cases = tuple(case(number, way) for number, way in enumerate(ways, start=1))
    return TaskProblem.of(asked, str(good), [Split(cases, f" {results(ways)} so {good}")], "selective", num_ways)
