"""Words to say twice: no reasoning, but it teaches a new model within minutes to find a word and go on from there.

A model that can do this learns the other tasks, whose steps all look something up, many times faster than one that has
to learn both at once. The words are those of the other tasks, also as they stand in front of what is looked up.
"""

from __future__ import annotations

import random

from mvtrain.data.tasks import sat, selective, ways
from mvtrain.data.tasks.steps import TaskProblem

LITERALS = [prefix + variable for variable in sat.VARIABLES for prefix in ("", "not-")]
WORDS = (*ways.PLACES[: ways.NUM_NAMES], *ways.COLOURS, selective.HOME, selective.WALL, *LITERALS)
RESULTS = tuple(f"{number}=" for number in range(1, ways.MAX_WAYS + 1))
"""What results are found by. Without these some models never learn to gather more than a few ways."""
SIGNS, SHARES = ("", ":", ";"), (0.6, 0.2, 0.2)
"""What stands behind a word, and how often."""


def draw(source: random.Random, num_words: int) -> TaskProblem:
    *first, last = source.sample((*WORDS, *RESULTS), num_words)
    signs = source.choices(SIGNS, SHARES, k=len(first))
    signed = [word if word in RESULTS else word + sign for word, sign in zip(first, signs, strict=True)]
    said = " ".join([*signed, last])
    asked = f"Words: {said} . Say them twice."
    return TaskProblem.of(asked, last, [f" {said} {said}"], "copying", num_words)
