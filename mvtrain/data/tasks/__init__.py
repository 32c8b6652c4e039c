"""Generated tasks whose answers can be checked, each problem as a sequential chain and as a trace of the same steps.

`problems("sat", 100, seed=0, difficulty=(2, 5))` yields 100 of them. Every task stands in a file of its own; they
share `steps.py` (a chain and a trace of one content) and `ways.py` (roads that are followed). The text is made for
small models: every word, label and key is one token of a tokenizer that cuts at spaces, and every step copies what
stands in view or looks up a bit.

A problem belongs to one of `NUM_FOLDS` folds by a hash of what it asks, and a seed draws from the fold
`seed % NUM_FOLDS`: seeds that differ modulo `NUM_FOLDS` never share a problem, however small the task is.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mvtrain.data.tasks import collective, copying, mixed, sat, selective, ways
from mvtrain.data.tasks.steps import TaskProblem

NUM_FOLDS = 4
MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Task:
    """How problems of one kind are drawn, and which difficulties there are."""

    draw: Callable[[random.Random, int], TaskProblem]
    meaning: str
    """What the difficulty counts."""
    default: int
    lowest: int
    highest: int


TASKS: dict[str, Task] = {
    "sat": Task(sat.draw, "variables of the formula", 3, sat.MIN_VARIABLES, sat.MAX_VARIABLES),
    "collective": Task(collective.draw, "independent ways, all of which are asked for", 4, 2, ways.MAX_WAYS),
    "selective": Task(selective.draw, "ways, of which one leads home", 4, 2, ways.MAX_WAYS),
    "mixed": Task(mixed.draw, "ways, or legs of a single way without any parallelism", 4, 2, ways.MAX_WAYS),
    "copying": Task(copying.draw, "words", 12, 4, 24),
}


def problems(
    task: str, count: int, seed: int, difficulty: int | tuple[int, int] | None = None
) -> Iterator[TaskProblem]:
    """`count` problems. Problem k of a seed does not depend on `count`; a small task may repeat a problem.

    Args:
        difficulty: one for all, or the lowest and highest of a range from which each problem draws its own.

    Raises:
        ValueError: no such task, or a difficulty that it does not have.
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}: choose one of {', '.join(TASKS)}")
    low, high = difficulty_range(task, difficulty)
    for index in range(count):
        source = random.Random(f"{task}/{seed}/{index}")
        yield _draw_of_fold(TASKS[task], source, seed % NUM_FOLDS, source.randint(low, high))


def difficulty_range(task: str, difficulty: int | tuple[int, int] | None) -> tuple[int, int]:
    """The lowest and the highest difficulty that is meant. Raises ValueError where the task has no such."""
    entry = TASKS[task]
    if difficulty is None:
        return entry.default, entry.default
    low, high = (difficulty, difficulty) if isinstance(difficulty, int) else difficulty
    if not entry.lowest <= low <= high <= entry.highest:
        given = low if low == high else f"{low}-{high}"
        raise ValueError(f"difficulty {given}: task {task} has {entry.lowest} to {entry.highest} ({entry.meaning})")
    return low, high


def fold_of(problem: TaskProblem) -> int:
    """Which fold a problem belongs to: a function of what is asked, however it is told."""
    return int.from_bytes(hashlib.sha256(problem.identity.encode()).digest()[:8], "big") % NUM_FOLDS


def _draw_of_fold(task: Task, source: random.Random, fold: int, difficulty: int) -> TaskProblem:
    for _ in range(MAX_DRAWS):
        problem = task.draw(source, difficulty)
        if fold_of(problem) == fold:
            return problem
    raise AssertionError(f"{MAX_DRAWS} problems of difficulty {difficulty}, and none of fold {fold}")
