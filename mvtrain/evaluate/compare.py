"""Two runs, or two modes of one run, on the problems that both have answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mvtrain.evaluate.intervals import RESAMPLES, Estimate, PairedDifference, paired_difference
from mvtrain.evaluate.measures import ByProblem, Measures, Same, main_runs, measure_group
from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.tasks import without_options

MANY_CUT = 0.1
"""A share of cut samples that is worth a warning."""
_NAMED = 5
"""How many ids a warning names."""


@dataclass(frozen=True)
class Comparison:
    """One task. All figures are of the problems that both sides have; differences are b - a."""

    task: str
    mode_a: str
    mode_b: str
    num_common: int
    a: Measures
    b: Measures
    accuracy: PairedDifference
    critical_path: PairedDifference
    """In tokens."""
    solved_only_by_a: tuple[str, ...]
    """Problems of which a has a correct sample and b has none."""
    solved_only_by_b: tuple[str, ...]
    warnings: tuple[str, ...]
    """What makes the two less than comparable; empty where nothing does."""


def compare(
    samples_a: Iterable[Sample],
    samples_b: Iterable[Sample],
    same: Same | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Compare two runs task by task, and mode by mode where both have the same modes.

    Where each side has one mode of a task, these two are compared, whatever they are: give the samples of two modes of
    a run to compare those. Problems whose question or reference differs are left out, with a warning.

    Raises ValueError where a side has several modes that do not pair up, or nothing at all is common.
    """
    runs_a, runs_b = main_runs(samples_a), main_runs(samples_b)
    found = []
    for task, mode_a, mode_b in _pairs(list(runs_a), list(runs_b)):
        a, b = runs_a[task, mode_a], runs_b[task, mode_b]
        common, warnings = _common(a, b)
        if not common:
            raise ValueError(f"{task}, {mode_a} against {mode_b}: {'; '.join(warnings)}; nothing is left to compare")
        a, b = {id: a[id] for id in common}, {id: b[id] for id in common}
        measures = (
            measure_group(task, mode_a, a, same, seed, resamples),
            measure_group(task, mode_b, b, same, seed, resamples),
        )
        found.append(
            Comparison(
                task=task,
                mode_a=mode_a,
                mode_b=mode_b,
                num_common=len(common),
                a=measures[0],
                b=measures[1],
                accuracy=paired_difference(_scores(a), _scores(b), resamples, seed),
                critical_path=paired_difference(_critical_paths(a), _critical_paths(b), resamples, seed),
                solved_only_by_a=tuple(id for id in common if _solved(a[id]) and not _solved(b[id])),
                solved_only_by_b=tuple(id for id in common if _solved(b[id]) and not _solved(a[id])),
                warnings=(*warnings, *_unequal(*measures)),
            )
        )
    return found


def _pairs(runs_a: Sequence[tuple[str, str]], runs_b: Sequence[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """(task, mode of a, mode of b) for all that is compared."""
    pairs = []
    for task in dict.fromkeys(task for task, _ in runs_a):
        modes_a, modes_b = ([mode for name, mode in runs if name == task] for runs in (runs_a, runs_b))
        if len(modes_a) == len(modes_b) == 1:
            pairs.append((task, modes_a[0], modes_b[0]))
            continue
        shared = [(task, mode, mode) for mode in modes_a if mode in modes_b]
        if modes_b and not shared:
            raise ValueError(
                f"{task}: one side has the modes {', '.join(modes_a)}, the other {', '.join(modes_b)}; "
                f"choose one of each"
            )
        pairs += shared
    if not pairs:
        names = (", ".join(dict.fromkeys(task for task, _ in runs)) or "none" for runs in (runs_a, runs_b))
        raise ValueError(f"no task is common to the two: {' against '.join(names)}")
    return pairs


def _common(a: ByProblem, b: ByProblem) -> tuple[list[str], list[str]]:
    """Ids of problems that are the same on both sides, and warnings about all others."""
    both = [id for id in a if id in b]
    questions = [id for id in both if _asked(a[id], 0) != _asked(b[id], 0)]
    references = [id for id in both if id not in questions and _asked(a[id], 1) != _asked(b[id], 1)]
    warnings = [
        f"{len(ids)} problems {what}: {_some(ids)}"
        for what, ids in (
            ("only a has, left out", [id for id in a if id not in b]),
            ("only b has, left out", [id for id in b if id not in a]),
            ("with different questions, left out", questions),
            ("with different references, left out", references),
        )
        if ids
    ]
    return [id for id in both if id not in questions and id not in references], warnings


def _asked(samples: Sequence[Sample], which: int) -> set[str]:
    """All questions, or all references, of a problem's samples; options in whatever order they were asked."""
    return {
        (without_options(s.question, s.reference) if s.kind == "choice" else (s.question, s.reference))[which]
        for s in samples
    }


def _unequal(a: Measures, b: Measures) -> list[str]:
    warnings = []
    if a.samples_per_problem != b.samples_per_problem:
        counts = ("-".join(map(str, sorted(set(m.samples_per_problem)))) for m in (a, b))
        warnings.append(f"samples per problem differ: {' against '.join(counts)}; more samples solve more problems")
    for side, measures in (("a", a), ("b", b)):
        if measures.truncated > MANY_CUT:
            warnings.append(f"{measures.truncated:.0%} of the samples of {side} were cut at the length limit")
    return warnings


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")


def _solved(samples: Sequence[Sample]) -> bool:
    return any(s.correct is True for s in samples)


def _scores(problems: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    return {id: fmean(s.correct is True for s in of_one) for id, of_one in problems.items()}


def _critical_paths(problems: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    return {id: fmean(s.critical_path for s in of_one) for id, of_one in problems.items()}


def as_table(comparisons: Sequence[Comparison], label_a: str = "a", label_b: str = "b") -> str:
    """Markdown that reads well as plain text: a table for every task, then what is worth knowing of it."""
    return "\n\n".join(_table(comparison, label_a, label_b) for comparison in comparisons)


def _table(c: Comparison, label_a: str, label_b: str) -> str:
    names = [f"{label} ({mode})".replace("|", "\\|") for label, mode in ((label_a, c.mode_a), (label_b, c.mode_b))]
    rows = [
        [c.task.replace("|", "\\|"), *names, "difference"],
        [f"avg@{_count(c)}", _rate(c.a.avg), _rate(c.b.avg), _points(c.accuracy)],
        ["well formed", _rate(c.a.well_formed), _rate(c.b.well_formed), ""],
        ["parallelism", _ratio(c.a.parallelism), _ratio(c.b.parallelism), ""],
        ["generated tokens", f"{c.a.generated_tokens:,.0f}", f"{c.b.generated_tokens:,.0f}", ""],
        ["critical path", f"{c.a.critical_path:,.0f}", f"{c.b.critical_path:,.0f}", _tokens(c.critical_path)],
        ["seconds", f"{c.a.seconds.mean:,.2f}", f"{c.b.seconds.mean:,.2f}", ""],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    lines += ["", f"{c.num_common} problems; differences are the second column less the first, over the same problems."]
    for label, ids in ((label_a, c.solved_only_by_a), (label_b, c.solved_only_by_b)):
        lines.append(f"Solved only by {label}: {len(ids)}{': ' + ', '.join(ids) if ids else ''}")
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in c.warnings)])


def _count(c: Comparison) -> str:
    low, high = (
        min(c.a.samples_per_problem + c.b.samples_per_problem),
        max(c.a.samples_per_problem + c.b.samples_per_problem),
    )
    return str(low) if low == high else f"{low}-{high}"


def _rate(estimate: Estimate) -> str:
    low, high = estimate.wilson or (estimate.low, estimate.high)
    return f"{estimate.value:.1%}" + ("" if low is None or high is None else f" [{100 * low:.1f}, {100 * high:.1f}]")


def _ratio(estimate: Estimate) -> str:
    if estimate.low is None:
        return f"{estimate.value:.2f}"
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def _points(d: PairedDifference) -> str:
    interval = "" if d.low is None or d.high is None else f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    return f"{100 * d.difference:+.1f} points{interval}, p = {d.p_value:.2g}"


def _tokens(d: PairedDifference) -> str:
    interval = "" if d.low is None or d.high is None else f" [{d.low:+,.0f}, {d.high:+,.0f}]"
    return f"{d.difference:+,.0f}{interval}, p = {d.p_value:.2g}"
