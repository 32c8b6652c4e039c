"""Samples -> results: what `results.json` holds, and the report shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from mvtrain.evaluate.budgets import BudgetPoint, budget_curve, budget_differences, forced_budgets
from mvtrain.evaluate.config import EvaluationConfig, Policy
from mvtrain.evaluate.intervals import Estimate, PairedDifference, paired_difference
from mvtrain.evaluate.measures import Measures, main_runs, measure
from mvtrain.evaluate.records import MODES, Mode, Sample

Same = Callable[[str, str], bool]


def make_results(
    samples: Sequence[Sample],
    config: EvaluationConfig,
    timings: Iterable[Mapping[str, Any]] = (),
    same: Same | None = None,
) -> dict[str, Any]:
    """Everything that is computed from the samples of a run, as plain data.

    Args:
        timings: of every batched run of the main samples: task, mode, num_generated and seconds.
        same: whether two answers mean the same, for maj@k.
    """
    speeds = _tokens_per_second(timings)
    groups = [_group(m, speeds.get((m.task, m.mode))) for m in measure(samples, same)]
    return {
        "groups": groups,
        "budgets": _budgets(samples, config),
        "paired": [*_paired(samples), *_paired_at_budgets(samples, config)],
    }


def _group(m: Measures, tokens_per_second: float | None) -> dict[str, Any]:
    values = {
        "avg": _estimate(m.avg),
        "pass": {k: _estimate(e) for k, e in m.pass_at.items() if k > 1},
        "maj": {k: _estimate(e) for k, e in m.maj_at.items() if k > 1},
        "ungradable": m.ungradable,
        "well_formed": _estimate(m.well_formed),
        "with_blocks": m.with_blocks,
        "forced_closes": m.forced_close,
        "truncated": m.truncated,
        "failed": m.failed,
        "parallelism": _estimate(m.parallelism),
        "parallelism_mean": _estimate(m.mean_parallelism),
        "parallelism_paper": _estimate(m.parallelism_with_prompt),
        "generated_tokens": m.generated_tokens,
        "critical_path_tokens": m.critical_path,
        "seconds_per_sample": m.seconds.mean,
        "tokens_per_second": tokens_per_second,
        "latency_per_token": m.seconds_per_token and m.seconds_per_token.mean,
    }
    counts = {"task": m.task, "mode": m.mode, "num_problems": m.num_problems, "num_samples": m.num_samples}
    return {**counts, "agreement": m.agreement, "measures": {k: v for k, v in values.items() if v not in (None, {})}}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    return {name: value for name, value in asdict(estimate).items() if value is not None}


def _tokens_per_second(timings: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """All tokens of a task and mode over the wall time of its runs; of a run that was killed there is no time."""
    sums: dict[tuple[str, str], list[float]] = {}
    for timing in timings:
        total = sums.setdefault((timing["task"], timing["mode"]), [0.0, 0.0])
        total[0] += timing["num_generated"]
        total[1] += timing["seconds"]
    return {name: tokens / seconds for name, (tokens, seconds) in sums.items() if seconds}


def _policies(config: EvaluationConfig) -> tuple[Policy, ...]:
    """A forced answer is an addition: what the answers are worth without it follows from the main run."""
    return ("wrong", "forced") if config.policy == "forced" else ("wrong",)


def _budgets(samples: Sequence[Sample], config: EvaluationConfig) -> list[dict[str, Any]]:
    curves = []
    for policy in _policies(config) if config.budgets else ():
        for (task, mode), budgets in _complete(samples, config, policy).items():
            own = [s for s in samples if (s.task, s.mode) == (task, mode)]
            points = budget_curve(own, budgets, policy, max_tokens=config.max_tokens) if budgets else []
            if points:
                curves.append({"task": task, "mode": mode, "policy": policy, "points": [_point(p) for p in points]})
    return curves


def _complete(
    samples: Sequence[Sample], config: EvaluationConfig, policy: Policy
) -> dict[tuple[str, str], Sequence[int]]:
    """(task, mode) -> the budgets for which all answers are there."""
    if policy == "forced":
        return forced_budgets(samples, config.budgets)
    return dict.fromkeys(main_runs(samples), config.budgets)


def _point(point: BudgetPoint) -> dict[str, Any]:
    return {
        "budget": point.budget,
        "critical_path": point.critical_path,
        "accuracy": _estimate(point.accuracy),
        "total_tokens": point.generated_tokens,
        "share_cut": point.cut,
        "parallelism": point.parallelism,
    }


def _mode_pairs(samples: Sequence[Sample]) -> list[tuple[str, Mode, Mode]]:
    """(task, a, b) for every two modes of a task, in the order of `MODES`; differences are a - b."""
    modes: dict[str, set[Mode]] = {}
    for sample in samples:
        modes.setdefault(sample.task, set()).add(sample.mode)
    order = list(MODES)
    return [(task, a, b) for task, found in modes.items() for a, b in combinations(sorted(found, key=order.index), 2)]


def _paired(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Accuracy of two modes on the same problems."""
    scores = {
        name: {id: sum(s.correct is True for s in of_one) / len(of_one) for id, of_one in problems.items()}
        for name, problems in main_runs(samples).items()
    }
    return [
        _difference(task, a, b, paired_difference(scores[task, b], scores[task, a]))
        for task, a, b in _mode_pairs(samples)
        if scores.get((task, a), {}).keys() & scores.get((task, b), {}).keys()
    ]


def _paired_at_budgets(samples: Sequence[Sample], config: EvaluationConfig) -> list[dict[str, Any]]:
    """The same at every budget."""
    pairs = []
    for policy in _policies(config) if config.budgets else ():
        complete = _complete(samples, config, policy)
        for task, a, b in _mode_pairs(samples):
            budgets = [x for x in complete.get((task, a), ()) if x in complete.get((task, b), ())]
            own = [s for s in samples if s.task == task and s.mode in (a, b)]
            if budgets:
                found = budget_differences(own, budgets, policy, b, a, max_tokens=config.max_tokens)
                pairs += [_difference(task, a, b, d.difference, d.budget, policy) for d in found]
    return pairs


def _difference(
    task: str, a: str, b: str, d: PairedDifference, budget: int | None = None, policy: str | None = None
) -> dict[str, Any]:
    return {
        "task": task,
        "a": a,
        "b": b,
        "budget": budget,
        "policy": policy,
        "num_problems": d.num_problems,
        "difference": {"value": d.difference, "low": d.low, "high": d.high},
        "p_value": d.p_value,
    }
