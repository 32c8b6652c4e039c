"""Samples of a run -> its figures, with intervals. docs/evaluation-measures.md has the formulas.

A problem counts once, however many samples it has: a rate is the mean over problems of the mean over its samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mvtrain.evaluate.grading_answers import normalise
from mvtrain.evaluate.intervals import (
    RESAMPLES,
    Estimate,
    bca_interval,
    rate_from,
    ratio_of_first_two,
    resampled_means,
)
from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.tasks import chosen_option

Same = Callable[[str, str], bool]
ByProblem = dict[str, list[Sample]]

RATES: dict[str, Callable[[Sample], bool]] = {
    "avg": lambda s: s.correct is True,
    "ungradable": lambda s: s.correct is None,
    "well_formed": lambda s: s.well_formed,
    "with_blocks": lambda s: s.num_blocks > 0,
    "forced_close": lambda s: s.num_forced_closes > 0,
    "truncated": lambda s: s.truncated,
    "failed": lambda s: s.finish_reason in ("cancelled", "error"),
}
_MEANS: dict[str, Callable[[Sample], float]] = {
    "generated": lambda s: s.num_generated,
    "critical": lambda s: s.critical_path,
    "generated_with_prompt": lambda s: s.num_generated + s.num_prompt,
    "critical_with_prompt": lambda s: s.critical_path + s.num_prompt,
    "parallelism": lambda s: s.parallelism,
}


@dataclass(frozen=True)
class Spread:
    """Over samples, not over problems."""

    mean: float
    median: float


@dataclass(frozen=True)
class Measures:
    """The main run of one task in one mode. Rates are between 0 and 1; `dataclasses.asdict` gives plain data."""

    task: str
    mode: str
    num_problems: int
    num_samples: int
    samples_per_problem: tuple[int, int]
    """Smallest and largest number; they differ where a run was stopped."""
    avg: Estimate
    """avg@n: the share of correct samples. What could not be graded counts as not correct."""
    pass_at: dict[int, Estimate]
    """k -> pass@k, the chance that one of k samples is correct; k to the smallest number of samples."""
    maj_at: dict[int, Estimate]
    """k -> maj@k, whether the most frequent answer of the first k samples is correct."""
    ungradable: float
    """Equality with the reference could not be told."""
    well_formed: Estimate
    with_blocks: float
    """At least one block ran in parallel."""
    forced_close: float
    """The engine had to close a path or a block."""
    truncated: float
    failed: float
    """Cancelled, or the model's output was not a number."""
    generated_tokens: float
    """Mean for a sample, the prompt not counted."""
    critical_path: float
    """Mean tokens on the longest sequential chain, the prompt not counted."""
    parallelism: Estimate
    """Ratio of means: generated tokens / critical path."""
    mean_parallelism: Estimate
    """Mean of the samples' own ratios."""
    parallelism_with_prompt: Estimate
    """Ratio of means with the prompt counted in both, as the token counts of the paper's engine include it."""
    seconds: Spread
    """From admission into the batch to the last token; it depends on what else is in the batch."""
    tokens_per_second: Spread | None
    """Of a sample: generated tokens / seconds. None where no sample has both."""
    seconds_per_token: Spread | None
    """Latency: seconds / generated tokens."""
    agreement: str = field(default="exact text")
    """How answers were held equal for maj@k."""


def main_runs(samples: Iterable[Sample]) -> dict[tuple[str, str], ByProblem]:
    """(task, mode) -> problem -> its samples in order, answers that were forced at a budget left out.

    Raises ValueError for a sample that is there twice.
    """
    groups: dict[tuple[str, str], ByProblem] = {}
    seen = set()
    for sample in samples:
        if sample.budget is not None:
            continue
        if sample.key in seen:
            raise ValueError(f"sample {sample.sample} of {sample.id} ({sample.task}, {sample.mode}) is there twice")
        seen.add(sample.key)
        groups.setdefault((sample.task, sample.mode), {}).setdefault(sample.id, []).append(sample)
    for problems in groups.values():
        for of_one in problems.values():
            of_one.sort(key=lambda s: s.sample)
    return groups


def measure(
    samples: Iterable[Sample], same: Same | None = None, *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Measures]:
    """The figures of every task and mode among the samples.

    Args:
        samples: in any order; rows with a `budget` are passed over.
        same: whether two answers mean the same, for maj@k; None compares their text without white space around it.
        seed, resamples: of the bootstrap.
    """
    groups = main_runs(samples)
    return [measure_group(*name, problems, same, seed, resamples) for name, problems in groups.items()]


def measure_group(
    task: str,
    mode: str,
    problems: Mapping[str, Sequence[Sample]],
    same: Same | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measures:
    """The figures of one group of `main_runs`."""
    columns, ks = _columns(problems, same)
    names, table_PC = list(columns), np.array(list(columns.values()), dtype=float).T
    means_RC = resampled_means(table_PC, resamples, seed)

    def rate(name: str) -> Estimate:
        at = [names.index(name)]
        return rate_from(table_PC[:, at], means_RC[:, at])

    def ratio(above: str, below: str) -> Estimate:
        at = [names.index(above), names.index(below)]
        value = float(ratio_of_first_two(table_PC[:, at].mean(axis=0)))
        interval = bca_interval(table_PC[:, at], means_RC[:, at], ratio_of_first_two)
        return Estimate(value, *(interval or (None, None)))

    every = [sample for of_one in problems.values() for sample in of_one]
    sizes = [len(of_one) for of_one in problems.values()]
    plain = ("ungradable", "with_blocks", "forced_close", "truncated", "failed")
    return Measures(
        task=task,
        mode=mode,
        num_problems=len(problems),
        num_samples=len(every),
        samples_per_problem=(min(sizes), max(sizes)),
        avg=rate("avg"),
        pass_at={k: rate(f"pass@{k}") for k in ks},
        maj_at={k: rate(f"maj@{k}") for k in ks},
        well_formed=rate("well_formed"),
        generated_tokens=float(np.mean(columns["generated"])),
        critical_path=float(np.mean(columns["critical"])),
        parallelism=ratio("generated", "critical"),
        mean_parallelism=ratio("parallelism", "one"),
        parallelism_with_prompt=ratio("generated_with_prompt", "critical_with_prompt"),
        agreement="exact text" if same is None else getattr(same, "__name__", "a given rule"),
        **{name: float(np.mean(columns[name])) for name in plain},
        **_speed(every),
    )


def _columns(problems: Mapping[str, Sequence[Sample]], same: Same | None) -> tuple[dict[str, list[float]], list[int]]:
    """Name -> a figure for each problem; and the k of pass@k and maj@k."""
    groups = list(problems.values())
    ks = counts_up_to(min(map(len, groups)))
    columns = {
        name: [statistics.fmean(get(s) for s in group) for group in groups]
        for name, get in {**RATES, **_MEANS, "one": lambda s: 1.0}.items()
    }
    for k in ks:
        columns[f"pass@{k}"] = [pass_at_k(len(group), sum(s.correct is True for s in group), k) for group in groups]
    majorities = [majority_scores([(vote(s), s.correct is True) for s in group], ks, same) for group in groups]
    columns |= {f"maj@{k}": [scores[k] for scores in majorities] for k in ks}
    return columns, ks


def counts_up_to(num: int) -> list[int]:
    """The powers of two up to a number, and the number."""
    return sorted({2**i for i in range(num.bit_length())} | {num})


def pass_at_k(num: int, num_correct: int, k: int) -> float:
    """Chance that k of `num` samples, drawn without putting back, hold a correct one (Chen et al. 2021).

    Raises ValueError for k above `num`.
    """
    if not 1 <= k <= num:
        raise ValueError(f"pass@{k} of {num} samples: k goes from 1 to {num}")
    return 1.0 - math.comb(num - num_correct, k) / math.comb(num, k)


def vote(sample: Sample) -> str | None:
    """What a sample votes for: its answer, or the text of the option, since letters move from sample to sample."""
    if sample.answer is None or not sample.answer.strip():
        return None
    chosen = chosen_option(sample.question, normalise(sample.answer)) if sample.kind == "choice" else None
    return sample.answer.strip() if chosen is None else chosen


def majority_scores(
    votes: Sequence[tuple[str | None, bool]], ks: Sequence[int], same: Same | None = None
) -> dict[int, float]:
    """k -> whether the most frequent answer of the first k votes is correct; where several are, the share that is.

    Args:
        votes: (answer, whether it was graded correct) in order. None does not vote.
        same: an answer joins the first group whose first answer is the same; None: equal text.

    A group of equal answers is correct if one of its votes was graded so. Without any vote the score is 0.
    """
    groups = _grouped([answer for answer, _ in votes], same)
    scores = {}
    for k in ks:
        sizes: dict[int, int] = {}
        correct = set()
        for group, (_, right) in zip(groups[:k], votes[:k], strict=True):
            if group is not None:
                sizes[group] = sizes.get(group, 0) + 1
                correct |= {group} if right else set()
        largest = [group for group, size in sizes.items() if size == max(sizes.values())]
        scores[k] = sum(group in correct for group in largest) / len(largest) if largest else 0.0
    return scores


def _grouped(answers: Sequence[str | None], same: Same | None) -> list[int | None]:
    """Which group of equal answers each belongs to; None for no answer."""
    firsts: list[str] = []
    group_of: dict[str, int] = {}
    for answer in answers:
        if answer is None or answer in group_of:
            continue
        equal = (i for i, first in enumerate(firsts) if same and same(first, answer))
        group = next(equal, len(firsts))
        if group == len(firsts):
            firsts.append(answer)
        group_of[answer] = group
    return [None if answer is None else group_of[answer] for answer in answers]


def _speed(samples: Sequence[Sample]) -> dict[str, Spread | None]:
    timed = [s for s in samples if s.seconds > 0 and s.num_generated > 0]
    return {
        "seconds": _spread([s.seconds for s in samples]),
        "tokens_per_second": _spread([s.num_generated / s.seconds for s in timed]) if timed else None,
        "seconds_per_token": _spread([s.seconds / s.num_generated for s in timed]) if timed else None,
    }


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.median(values))
