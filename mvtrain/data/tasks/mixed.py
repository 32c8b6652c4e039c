"""Problems to gather from, to choose from, and without any parallelism, so that a model must decide.

The last kind is a single way, as long as the ways of the others together: each step depends on the one before it, and
its trace has no block.
"""

from __future__ import annotations

import random

from mvtrain.data.tasks import collective, selective
from mvtrain.data.tasks.steps import TaskProblem
from mvtrain.data.tasks.ways import COLOURS, NUM_PLACES, case, draw_ways, question


def draw(source: random.Random, num_ways: int) -> TaskProblem:
    return source.choice((collective.draw, selective.draw, draw_single))(source, num_ways)


def draw_single(source: random.Random, num_legs: int) -> TaskProblem:
    """One way of as many places as `num_legs` ways have together."""
    [way] = draw_ways(source, [source.choice(COLOURS)], tuple(num_legs * places for places in NUM_PLACES))
    asked = question(source, [way], "Where does the way end?")
    text = f"1:{case(1, way).steps[0]}"
    return TaskProblem.of(asked, way[-1], [text], "single", num_legs)
