"""The paper's claims, each held against the results of a run: what was claimed, what was found, whether it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mvtrain.evaluate.intervals import wilson_interval
from reproduction.plan import SAT_LIMIT

Results = Mapping[str, Any]
NEAR = 0.9
"""Speed-up over parallelism that counts as the paper's."""
FAR = 0.2
"""Between the upper end of the base's interval and the lower ends of the others'."""
MARGIN = 0.05
"""What a difference must not fall below, with its whole interval, where one is to be as good as the other."""
ENOUGH = 1000
"""Parallel examples of the paper's fine-tuning."""
EQUAL_ACCURACY = 0.9
"""Accuracy in both modes from which lengths are compared."""
FORMED = 0.9
"""Lower end of the share of answers in blocks from which a model has taken up the form."""
CONSTANT, DOUBLING = 0.1, 1.8
"""How far steps of linear growth may lie from their mean; what a step of doubling growth is at least of the last."""


@dataclass(frozen=True)
class Claim:
    """One line of the page. `holds` is None where a run was too small, or a model too weak, to tell."""

    source: str
    text: str
    found: str
    holds: bool | None


def claims(results: Results) -> list[Claim]:
    """As many for every run, in one order."""
    return [
        *_accuracy(results),
        _instruction(results),
        *_without_instruction(results),
        *_growth(results),
        *_budgets(results),
        *_speed(results),
        *_transfer(results),
    ]


def tasks_of(results: Results) -> list[str]:
    return list(results["plan"]["difficulties"]["tested"])


def group(results: Results, task: str, mode: str) -> Results:
    """The measures of one task in one mode."""
    return next(g for g in results["groups"] if (g["task"], g["mode"]) == (task, mode))["measures"]


def gap(differences: Iterable[Results], task: str) -> Results:
    """A paired difference of accuracies, with its interval."""
    return next(row for row in differences if row["task"] == f"test_{task}")["accuracy"]


def as_good(difference: Results) -> bool | None:
    """Whether the second is as good as the first: None where the interval leaves both open.

    The bootstrap's interval has no width where all pairs agree, so it is held to what so many problems can rule out: a
    loss on none of n leaves losses of up to Wilson's bound of 0 in n.
    """
    if difference["low"] < -MARGIN and difference["high"] < 0:
        return False
    ruled_out = wilson_interval(0, difference["num_problems"])[1]
    return True if min(difference["low"], -ruled_out) >= -MARGIN else None


# Accuracy


def _accuracy(results: Results) -> list[Claim]:
    table, found = results["table_2"], []
    mode = {"base": "sequential", "autoregressive": "sequential", "multiverse": "parallel"}
    for task in tasks_of(results):
        values = {model: group(table[model], f"test_{task}", mode[model])["avg"] for model in table}
        base, ours, theirs = (values[model] for model in ("base", "multiverse", "autoregressive"))
        difference = gap(results["difference"], task)
        found += [
            Claim(
                "table 2",
                f"{task}: Multiverse answers as well as Autoregressive",
                f"{percent(ours)} against {percent(theirs)}; difference {points(difference)}",
                as_good(difference) if above(theirs, base) else None,
            ),
            Claim(
                "table 2",
                f"{task}: both far above the base, by {100 * FAR:.0f} points and more",
                f"base {percent(base)}",
                min(interval(ours)[0], interval(theirs)[0]) > interval(base)[1] + FAR,
            ),
        ]
    return found


def _instruction(results: Results) -> Claim:
    run, tasks = results["table_2"]["multiverse"], tasks_of(results)
    pairs = [[group(run, f"test_{task}", mode)["parallelism"] for mode in ("parallel", "unasked")] for task in tasks]
    shown = "; ".join(
        f"{task} {asked['value']:.2f} asked, {unasked['value']:.2f} unasked"
        for task, (asked, unasked) in zip(tasks, pairs, strict=True)
    )
    holds = all(asked["low"] > 1 and asked["low"] > unasked["high"] for asked, unasked in pairs)
    return Claim("table 2", "parallelism above 1, and higher with the instruction", shown, holds)


def _without_instruction(results: Results) -> list[Claim]:
    run, found = results["table_2"]["multiverse"], []
    for task in tasks_of(results):
        asked, unasked = (group(run, f"test_{task}", mode)["avg"] for mode in ("parallel", "unasked"))
        difference = gap(results["unasked"], task)
        learnt = above(asked, group(results["table_2"]["base"], f"test_{task}", "sequential")["avg"])
        text = f"{task}: without the instruction Multiverse answers as well as with it"
        shown = f"{percent(unasked)} against {percent(asked)}; difference {points(difference)}"
        found.append(Claim("table 2", text, shown, as_good(difference) if learnt else None))
    return found


def _transfer(results: Results) -> list[Claim]:
    """Of the model of `ENOUGH` examples: whether it takes up the form, and whether it is as good as that of all."""
    texts = [f"{ENOUGH:,} examples are enough to {what}" for what in ("write blocks", "answer as well as with all")]
    few = sum(results["plan"]["size"]["few"].values())
    if "reference" not in results["few"] or few != ENOUGH:
        return [Claim("rapid transfer", text, "not measured", None) for text in texts]
    tasks, run = tasks_of(results), results["few"]["reference"]
    blocks = {task: share(*in_blocks(results, "reference", task)) for task in tasks}
    form = Claim(
        "rapid transfer", texts[0],
        "; ".join(f"{task}: {percent(value)} of the problems that have parallelism" for task, value in blocks.items()),
        all(interval(value)[0] >= FORMED for value in blocks.values()),
    )  # fmt: skip
    gaps = {task: gap(results["reference_against_all"], task) for task in tasks}
    shown = "; ".join(
        f"{task}: {percent(group(run, f'test_{task}', 'parallel')['avg'])}, difference {points(difference)}"
        for task, difference in gaps.items()
    )
    verdicts = [as_good(difference) for difference in gaps.values()]
    holds = False if False in verdicts else None if None in verdicts else True
    return [form, Claim("rapid transfer", texts[1], shown, holds)]


def in_blocks(results: Results, name: str, task: str) -> tuple[int, int]:
    """How many answers to problems with parallelism are well formed and have a block, and of how many."""
    rows = [row for row in results["kinds"][name] if (row["task"], row["mode"]) == (f"test_{task}", "parallel")]
    rows = [row for row in rows if row["kind"] != "single"]
    return sum(row["in_blocks"] for row in rows), sum(row["problems"] for row in rows)


def transfer_points(results: Results) -> dict[int, tuple[Results, str]]:
    """Number of examples -> results of the model that saw so many, and its name; that of all comes last."""
    if "reference" not in results["few"]:
        return {}
    size = results["plan"]["size"]
    found = {count: (results["few"][f"transfer_{count}"], f"transfer_{count}") for count in size["transfer"]}
    found[sum(size["few"].values())] = (results["few"]["reference"], "reference")
    found[sum(size["tuning"].values())] = (results["table_2"]["multiverse"], "multiverse")
    return found


# SAT


def lengths(results: Results) -> list[dict[str, Any]]:
    """By number of variables: accuracies, tokens in sequence, tokens and critical path in parallel."""
    rows = []
    for variables in results["plan"]["difficulties"]["growth"]:
        name = f"test_sat_{variables}"
        ours = group(results["growth"]["multiverse"], name, "parallel")
        theirs = group(results["growth"]["autoregressive"], name, "sequential")
        rows.append(
            {
                "variables": variables,
                "accuracy": ours["avg"],
                "accuracy_sequential": theirs["avg"],
                "accuracy_as_chain": group(results["growth"]["multiverse"], name, "sequential")["avg"],
                "sequential": theirs["generated_tokens"],
                "tokens": ours["generated_tokens"],
                "critical_path": ours["critical_path_tokens"],
            }
        )
    return rows


def _growth(results: Results) -> list[Claim]:
    rows = lengths(results)
    right_at = {
        row["variables"]: min(row[name]["value"] for name in ("accuracy", "accuracy_sequential")) for row in rows
    }
    at_limit = [row for row in rows if row["variables"] >= SAT_LIMIT]
    shares = [row["critical_path"] / row["sequential"] for row in at_limit]
    shown = "; ".join(
        f"n = {row['variables']}: {row['critical_path']:.0f} of {row['sequential']:.0f} tokens ({share:.0%}), "
        f"{row['accuracy']['value']:.0%} and {row['accuracy_sequential']['value']:.0%} right"
        for row, share in zip(at_limit, shares, strict=True)
    )
    third = Claim(
        "theory",
        f"from n = {SAT_LIMIT} the critical path is at most a third, at {EQUAL_ACCURACY:.0%} right and more", shown,
        all(share <= 1 / 3 for share in shares)
        and all(right_at[row["variables"]] >= EQUAL_ACCURACY for row in at_limit),
    )  # fmt: skip
    x = [row["variables"] for row in rows]
    path, chain = (Growth.of(x, [row[name] for row in rows]) for name in ("critical_path", "sequential"))
    grows = Claim(
        "theory", "the critical path grows linearly with n, the chain exponentially",
        f"critical path by {path.shown()}; chain by {chain.shown()}; at each n right: at least "
        f"{min(right_at.values()):.0%}",
        path.is_linear and chain.is_exponential,
    )  # fmt: skip
    return [third, grows]


@dataclass(frozen=True)
class Growth:
    """How y grows with x, a step of 1 at a time.

    `linear` and `exponential` are the shares of y's variance that least squares of y and of log y over x explain. Over
    few points a power of x passes for an exponential by that, so the steps decide: those of a line are constant, those
    of an exponential a multiple of each other.
    """

    steps: tuple[float, ...]
    linear: float
    exponential: float

    @classmethod
    def of(cls, x: Sequence[float], y: Sequence[float]) -> Growth:
        steps = tuple(after - before for before, after in pairwise(y))
        if not any(steps) or min(y) <= 0:
            return cls(steps, math.nan, math.nan)
        slope, start = statistics.linear_regression(x, y)
        log_slope, log_start = statistics.linear_regression(x, [math.log(value) for value in y])
        models = ([start + slope * v for v in x], [math.exp(log_start + log_slope * v) for v in x])
        return cls(steps, *(_explained(y, model) for model in models))

    @property
    def is_linear(self) -> bool:
        mean = statistics.fmean(self.steps)
        return mean > 0 and all(abs(step - mean) <= CONSTANT * mean for step in self.steps)

    @property
    def is_exponential(self) -> bool:
        return self.steps[0] > 0 and all(after >= DOUBLING * before for before, after in pairwise(self.steps))

    def shown(self) -> str:
        steps = ", ".join(f"{step:+.0f}" for step in self.steps)
        return f"{steps} (a line explains {self.linear:.1%}, an exponential {self.exponential:.1%})"


def _explained(y: Sequence[float], model: Sequence[float]) -> float:
    return 1 - sum((v - f) ** 2 for v, f in zip(y, model, strict=True)) / (statistics.pvariance(y) * len(y))


# Budgets and time


def budget_curves(results: Results, task: str) -> dict[str, list[Results]]:
    """Model and mode -> points of accuracy at critical paths."""
    shown = (("multiverse", "parallel"), ("multiverse", "sequential"), ("autoregressive", "sequential"))
    curves = {}
    for model, mode in shown:
        for curve in results["table_2"][model]["budgets"]:
            if (curve["task"], curve["mode"]) == (f"test_{task}", mode):
                curves[f"{model}, {mode}"] = curve["points"]
    return curves


def _budgets(results: Results) -> list[Claim]:
    """At budgets that Multiverse's mean critical path is within and Autoregressive's mean length is not."""
    found = []
    for task in tasks_of(results):
        table, curves = results["table_2"], budget_curves(results, task)
        enough = group(table["multiverse"], f"test_{task}", "parallel")["critical_path_tokens"]
        too_few = group(table["autoregressive"], f"test_{task}", "sequential")["generated_tokens"]
        pairs = [
            (ours["budget"], ours["accuracy"], theirs["accuracy"])
            for ours, theirs in zip(curves["multiverse, parallel"], curves["autoregressive, sequential"], strict=True)
            if enough <= ours["budget"] < too_few
        ]
        shown = "; ".join(f"at {budget} {percent(ours)} against {percent(theirs)}" for budget, ours, theirs in pairs)
        ahead = [above(ours, theirs) for _, ours, theirs in pairs]
        behind = [above(theirs, ours) for _, ours, theirs in pairs]
        found.append(
            Claim(
                "figure 7",
                f"{task}: ahead at budgets between Multiverse's critical path and Autoregressive's length",
                shown or f"no budget measured from {enough:.0f} to {too_few:.0f}",
                (True if all(ahead) else False if any(behind) else None) if pairs else None,
            )
        )
    return found


def _speed(results: Results) -> list[Claim]:
    every = f"at batch 1 the speed-up is at least {NEAR} times the parallelism"
    groups = by_parallelism(results)
    medians = {at: statistics.median(shares) for at, shares in groups.items()}
    shares = [share for found in groups.values() for share in found]
    answers = (
        f"{min(shares):.2f} to {max(shares):.2f} over {len(shares)} answers" if shares else "no answer in parallel"
    )
    batches = results["in_batches"]
    gains = "; ".join(f"batch {row['batch']}: {row['speed_up']:.2f} [{row['least']:.2f}, {row['most']:.2f}]"
                      for row in batches)  # fmt: skip
    stock = [row["tokens_per_second"] / row["tokens_per_second_transformers"] for row in batches]
    return [
        Claim(
            "figure 8a", f"{every}, as a median",
            f"{statistics.median(shares):.2f} times, {answers}" if shares else answers,
            statistics.median(shares) >= NEAR if shares else None,
        ),
        Claim(
            "figure 8a", f"{every}, at each parallelism",
            "; ".join(f"{at:.1f}: {value:.2f} times" for at, value in medians.items()) or answers,
            all(value >= NEAR for value in medians.values()) if medians else None,
        ),
        Claim(
            "figure 8b", "more tokens a second than in sequence at every batch size",
            f"{gains}; parallelism {batches[0]['parallelism']:.2f}", all(row["least"] > 1 for row in batches),
        ),
        Claim(
            "figure 8b", "more tokens a second than transformers' `generate` at every batch size",
            "; ".join(f"batch {row['batch']}: {gain:.2f}" for row, gain in zip(batches, stock, strict=True)),
            all(gain > 1 for gain in stock),
        ),
    ]  # fmt: skip


def by_parallelism(results: Results) -> dict[float, list[float]]:
    """Parallelism, to one decimal -> of each answer, its speed-up over its parallelism. Those without are left out."""
    found: dict[float, list[float]] = {}
    for row in sorted(results["alone"], key=lambda row: row["parallelism"]):
        if row["parallelism"] > 1:
            found.setdefault(round(row["parallelism"], 1), []).append(row["speed_up"] / row["parallelism"])
    return found


# Estimates


def share(count: int, of: int) -> dict[str, Any]:
    """A share of answers with Wilson's interval."""
    low, high = wilson_interval(count, of)
    return {"value": count / of, "low": low, "high": high, "wilson": [low, high]}


def interval(estimate: Results) -> tuple[float, float]:
    """95%: Wilson's for a share, which has a width also where all or none are right; else the bootstrap's."""
    return tuple(estimate.get("wilson") or (estimate["low"], estimate["high"]))


def above(first: Results, second: Results) -> bool:
    return interval(first)[0] > interval(second)[1]


def percent(estimate: Results) -> str:
    low, high = interval(estimate)
    return f"{estimate['value']:.0%} [{low:.0%}, {high:.0%}]"


def points(difference: Results) -> str:
    """A difference of shares, in percentage points."""
    value, low, high = (100 * difference[name] for name in ("difference", "low", "high"))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"
