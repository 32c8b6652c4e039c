"""How much is done: problems, tokens and tests of a reproduction in three sizes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

ABLATIONS = ("reference", "original", "causal", "parallel_only", "same_rows", "fast_rows")
"""Each but the first is the first but for one thing; see `models.ablation`."""


@dataclass(frozen=True)
class Size:
    """Counts are of problems unless they say tokens."""

    name: str
    copying: int
    copying_tokens: int
    easy: dict[str, int]
    """Task -> chains that the base is trained on, up to `EASY`."""
    base_tokens: int
    tuning: dict[str, int]
    """Task -> problems to fine-tune on, up to `HARD`, each as a chain and as a trace."""
    few: dict[str, int]
    """As many as the paper's 1,000 examples in all, for the ablations and for the transfer."""
    test: dict[str, int]
    """Task -> held-out problems, at `TESTED`."""
    growth: int
    """Held-out problems at each number of variables."""
    transfer: tuple[int, ...]
    """Fewer examples yet, in all."""
    ablations: tuple[str, ...]
    timed: int
    """Problems that are timed one at a time."""
    batches: tuple[int, ...]
    max_tokens: int = 1600
    """Limit on the critical path; the longest chain at `GROWTH` has 1,077 tokens."""


FULL = Size(
    name="full", copying=8000, copying_tokens=2_200_000, easy={"mixed": 20_000, "sat": 6000}, base_tokens=5_000_000,
    tuning={"mixed": 2000, "sat": 2000}, few={"mixed": 500, "sat": 500}, test={"mixed": 200, "sat": 100}, growth=50,
    transfer=(100, 300), ablations=ABLATIONS, timed=20, batches=(1, 8, 32, 128),
)  # fmt: skip
QUICK = Size(
    name="quick", copying=8000, copying_tokens=2_000_000, easy={"mixed": 12_000, "sat": 4000}, base_tokens=3_000_000,
    tuning={"mixed": 500, "sat": 500}, few={"mixed": 250, "sat": 250}, test={"mixed": 60, "sat": 30}, growth=10,
    transfer=(), ablations=("reference", "causal"), timed=10, batches=(1, 16),
)  # fmt: skip
SMOKE = Size(
    name="smoke", copying=100, copying_tokens=6000, easy={"mixed": 60, "sat": 20}, base_tokens=6000,
    tuning={"mixed": 10, "sat": 4}, few={"mixed": 5, "sat": 2}, test={"mixed": 4, "sat": 2}, growth=1,
    transfer=(), ablations=(), timed=1, batches=(1, 2), max_tokens=64,
)  # fmt: skip
CORE = replace(FULL, name="core", transfer=(), ablations=())
"""What another seed has to show: everything that is claimed, without ablations and transfer."""
SIZES = {size.name: size for size in (FULL, CORE, QUICK, SMOKE)}

EASY = {"mixed": "2-3", "sat": "2-3"}
HARD = {"mixed": "2-6", "sat": "2-5"}
"""Difficulties of chains that the base has seen, and of what it is fine-tuned on."""
TESTED = {"mixed": 6, "sat": 4}
GROWTH = (2, 3, 4, 5)
"""Numbers of variables at which lengths are measured."""
SAT_LIMIT = 4
"""Number of variables from which lengths are compared."""
FOLDS = {"train": 0, "tune": 4, "validate": 1, "test": 3}
"""Seeds of problems. Those that differ modulo 4 share no problem; `train` and `tune` are of one fold. What is changed
after a look at `test` needs a fold that nobody has looked at: 2 was it for what the recipes were first tested on."""


def seed_of(part: str, seed: int) -> int:
    """The seed of a part's problems in run `seed`. Runs share no problem of a part beyond chance."""
    return FOLDS[part] + 8 * seed


def as_told(size: Size, seed: int, held_out: str) -> dict[str, Any]:
    """All that a run's results depend on, as JSON holds it."""
    difficulties = {"easy": EASY, "hard": HARD, "tested": TESTED, "growth": GROWTH}
    told = {"size": asdict(size), "seed": seed, "held_out": held_out, "difficulties": difficulties, "folds": FOLDS}
    return json.loads(json.dumps(told))
