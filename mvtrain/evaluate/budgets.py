"""Accuracy against the length of the critical path, from one long run.

A token depends on the seed, the branch's lineage and its index alone, so a run with `max_tokens=B` writes what a longer
one writes, up to its cut, unless its limit on all tokens together (`max_total_tokens`) ends it earlier.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mvtrain.evaluate.config import POLICIES, Policy
from mvtrain.evaluate.intervals import RESAMPLES, Estimate, PairedDifference, estimate_rate, paired_difference
from mvtrain.evaluate.measures import ByProblem, main_runs
from mvtrain.evaluate.records import Sample

FORCED_ANSWER = "the answer was forced"
"""How the engine reports an answer that it opened at a limit: such a sample did not end by itself."""


@dataclass(frozen=True)
class BudgetPoint:
    """One task in one mode at one budget. Means are over problems of the mean over a problem's samples."""

    task: str
    mode: str
    policy: Policy
    budget: int
    """Tokens of critical path."""
    num_problems: int
    num_samples: int
    accuracy: Estimate
    critical_path: float
    """Mean of what was used: of a sample that was cut the budget ("wrong") or its forced answer's ("forced")."""
    generated_tokens: float | None
    """Mean; None where a sample that was cut was kept without its tokens, so that their number there is not known."""
    parallelism: float | None
    """Ratio of the two means above."""
    cut: float
    """Share of samples that did not end by themselves within the budget."""


@dataclass(frozen=True)
class BudgetDifference:
    """Two modes of a task at one budget; the difference is that of accuracy, b - a."""

    task: str
    mode_a: str
    mode_b: str
    policy: Policy
    budget: int
    difference: PairedDifference


@dataclass(frozen=True)
class _Outcome:
    """What a sample is worth at a budget."""

    correct: bool
    critical_path: int
    generated: int | None
    cut: bool


def budget_curve(
    samples: Iterable[Sample],
    budgets: Sequence[int],
    policy: Policy,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[BudgetPoint]:
    """Accuracy and tokens of every task and mode at each budget, in the order of budgets.

    Args:
        samples: the main run, and for "forced" also the samples whose `budget` is one of `budgets`.
        max_tokens: the main run's own limit on the critical path; None takes its longest critical path for it, if
            any of its samples were cut.

    Raises:
        ValueError: no budget, one below 1 or beyond the run's own limit, or an unknown policy.
        AssertionError: a forced answer is missing.
    """
    points = []
    for (task, mode), problems, forced in _groups(samples, budgets, policy, max_tokens):
        for budget in sorted(set(budgets)):
            outcomes = _outcomes(problems, forced, budget, policy)
            points.append(_point(task, mode, policy, budget, outcomes, resamples, seed))
    return points


def budget_differences(
    samples: Iterable[Sample],
    budgets: Sequence[int],
    policy: Policy,
    mode_a: str,
    mode_b: str,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[BudgetDifference]:
    """Accuracy of `mode_b` - that of `mode_a` at each budget, of every task run in both. See `budget_curve`."""
    groups = {name: rest for name, *rest in _groups(samples, budgets, policy, max_tokens)}
    found = []
    for task in [task for task, mode in groups if mode == mode_a and (task, mode_b) in groups]:
        for budget in sorted(set(budgets)):
            a, b = (_scores(_outcomes(*groups[task, mode], budget, policy)) for mode in (mode_a, mode_b))
            difference = paired_difference(a, b, resamples, seed)
            found.append(BudgetDifference(task, mode_a, mode_b, policy, budget, difference))
    return found


def _groups(
    samples: Iterable[Sample], budgets: Sequence[int], policy: Policy, max_tokens: int | None
) -> list[tuple[tuple[str, str], ByProblem, dict[tuple, Sample]]]:
    """For every (task, mode) its problems and the forced samples, once the arguments are known to make sense."""
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; choose one of {', '.join(POLICIES)}")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets {list(budgets)}: expected one or more, each at least 1 token")
    samples = list(samples)
    forced = {s.key: s for s in samples if s.budget is not None}
    groups = main_runs(samples)
    for (task, mode), problems in groups.items():
        limit = _limit(problems) if max_tokens is None else max_tokens
        if max(budgets) > limit:
            raise ValueError(
                f"{task}, {mode}: the budget {max(budgets)} is beyond the run's own limit of {limit} tokens of "
                f"critical path, at which samples were cut; run it with max_tokens of at least {max(budgets)}"
            )
    return [(name, problems, forced) for name, problems in groups.items()]


def _limit(problems: ByProblem) -> float:
    every = _all(problems)
    return max(s.critical_path for s in every) if not all(map(_ended_by_itself, every)) else math.inf


def needs_forcing(sample: Sample, budget: int) -> bool:
    """Whether a sample of the main run came to the budget without having ended by itself."""
    return sample.critical_path > budget or (sample.critical_path == budget and not _ended_by_itself(sample))


def forced_budgets(samples: Iterable[Sample], budgets: Sequence[int]) -> dict[tuple[str, str], list[int]]:
    """(task, mode) -> budgets at which every answer is there that has to be forced."""
    samples = list(samples)
    keys = {sample.key for sample in samples}
    return {
        name: [b for b in budgets if all((*s.key[:-1], b) in keys for s in _all(problems) if needs_forcing(s, b))]
        for name, problems in main_runs(samples).items()
    }


def _all(problems: ByProblem) -> list[Sample]:
    return [sample for of_one in problems.values() for sample in of_one]


def _ended_by_itself(sample: Sample) -> bool:
    return sample.finish_reason == "stop" and not any(FORCED_ANSWER in problem for problem in sample.problems)


def _outcomes(
    problems: ByProblem, forced: Mapping[tuple, Sample], budget: int, policy: Policy
) -> dict[str, list[_Outcome]]:
    return {id: [_outcome(s, forced, budget, policy) for s in of_one] for id, of_one in problems.items()}


def _outcome(sample: Sample, forced: Mapping[tuple, Sample], budget: int, policy: Policy) -> _Outcome:
    if sample.critical_path <= budget and _ended_by_itself(sample):
        return _Outcome(sample.correct is True, sample.critical_path, sample.num_generated, cut=False)
    if policy == "wrong":
        return _Outcome(False, min(sample.critical_path, budget), tokens_within(sample, budget), cut=True)
    answer = forced.get((*sample.key[:-1], budget))
    if answer is None and sample.critical_path < budget:
        answer = sample  # another limit ended it before it came to the budget
    assert answer is not None, (
        f"sample {sample.sample} of {sample.id} ({sample.task}, {sample.mode}) did not end within {budget} tokens, "
        f"and the run has no answer of it that was forced there"
    )
    cut = not _ended_by_itself(answer)  # rounding may let the second run end where the first one went on
    return _Outcome(answer.correct is True, answer.critical_path, answer.num_generated, cut=cut)


def tokens_within(sample: Sample, budget: int) -> int | None:
    """How many tokens a sample had when its critical path was `budget` long; None where that was not kept."""
    if sample.critical_path <= budget:
        return sample.num_generated
    if sample.tokens is None:
        return None
    end = sample.tokens["num_prompt"] + budget
    return sum(position < end for position in sample.tokens["positions"])


def _scores(outcomes: Mapping[str, Sequence[_Outcome]]) -> dict[str, float]:
    return {id: fmean(outcome.correct for outcome in of_one) for id, of_one in outcomes.items()}


def _point(
    task: str,
    mode: str,
    policy: Policy,
    budget: int,
    outcomes: Mapping[str, Sequence[_Outcome]],
    resamples: int,
    seed: int,
) -> BudgetPoint:
    groups = list(outcomes.values())
    critical = fmean(fmean(o.critical_path for o in group) for group in groups)
    counts = [[o.generated for o in group if o.generated is not None] for group in groups]
    known = list(map(len, counts)) == list(map(len, groups))
    generated = fmean(map(fmean, counts)) if known else None
    return BudgetPoint(
        task=task,
        mode=mode,
        policy=policy,
        budget=budget,
        num_problems=len(groups),
        num_samples=sum(map(len, groups)),
        accuracy=estimate_rate(list(_scores(outcomes).values()), resamples, seed),
        critical_path=critical,
        generated_tokens=generated,
        parallelism=None if generated is None else generated / critical if critical else 1.0,
        cut=fmean(fmean(o.cut for o in group) for group in groups),
    )
