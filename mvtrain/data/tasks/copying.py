"""Words to say twice: no reasoning, but it teaches a new model within minutes to find a word and go on from there.

A model that can do this learns the other tasks, whose steps all look something up, many times faster than one that has
to learn both at once.
"""

from __future__ import annotations

import random

from mvtrain.data.synthetic import PLACES
from mvtrain.data.tasks.steps import TaskProblem
from mvtrain.data.tasks.ways import NUM_NAMES

KEY_SHARE = 0.3
"""Of the words, those with a colon, as the roads have them."""


def draw(source: random.Random, num_words: int) -> TaskProblem:
    *places, last = source.sample(PLACES[:NUM_NAMES], num_words)
    words = [place + (":" if source.random() < KEY_SHARE else "") for place in places] + [last]
    said = " ".join(words)
    asked = f"Words: {said} . Say them twice."
    return TaskProblem.of(asked, last, [f" {said} {said}"], "copying", num_words)
