"""The paper's claims, each held against the results of a run: what was claimed, what was found, whether it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproduction.plan import GROWTH, SAT_LIMIT, TESTED

Results = Mapping[str, Any]
NEAR = 0.9
"""Speed-up over parallelism that counts as the paper's."""
FAR = 0.2
"""Between the upper end of the base's interval and the lower ends of the others'."""
ENOUGH = 1000
"""Parallel examples of the paper's fine-tuning."""
EQUAL_ACCURACY = 0.9
"""Accuracy in both modes from which lengths are compared."""


@dataclass(frozen=True)
class Claim:
    """One line of the page. `holds` is None where a run was too small to tell."""

    source: str
    text: str
    found: str
    holds: bool | None


def claims(results: Results) -> list[Claim]:
    of_table_2 = [*_accuracy(results), _instruction(results), *_without_instruction(results)]
    return [*of_table_2, *_growth(results), *_budgets(results), *_speed(results), _transfer(results)]


def group(results: Results, task: str, mode: str) -> Results:
    """The measures of one task in one mode."""
    return next(g for g in results["groups"] if (g["task"], g["mode"]) == (task, mode))["measures"]


def _accuracy(results: Results) -> list[Claim]:
    table, claims = results["table_2"], []
    for task in TESTED:
        name = f"test_{task}"
        mode = {"base": "sequential", "autoregressive": "sequential", "multiverse": "parallel"}
        values = {model: group(table[model], name, mode[model])["avg"] for model in table}
        gap = next(row for row in results["difference"] if row["task"] == name)["accuracy"]
        base, low = values["base"], min(interval(values[model])[0] for model in ("autoregressive", "multiverse"))
        claims += [
            Claim(
                "table 2",
                f"{task}: Multiverse answers as well as Autoregressive",
                f"{percent(values['multiverse'])} against {percent(values['autoregressive'])}; "
                f"difference {100 * gap['difference']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]",
                gap["high"] >= 0,
            ),
            Claim(
                "table 2",
                f"{task}: both far above the base, by {FAR:.0%} and more",
                f"base {percent(base)}",
                low > interval(base)[1] + FAR,
            ),
        ]
    return claims


def _instruction(results: Results) -> Claim:
    run = results["table_2"]["multiverse"]
    pairs = [[group(run, f"test_{task}", mode)["parallelism"] for mode in ("parallel", "unasked")] for task in TESTED]
    shown = "; ".join(
        f"{task} {asked['value']:.2f} asked, {unasked['value']:.2f} unasked"
        for task, (asked, unasked) in zip(TESTED, pairs, strict=True)
    )
    holds = all(asked["low"] > 1 and asked["low"] > unasked["high"] for asked, unasked in pairs)
    return Claim("table 2", "parallelism above 1, and higher with the instruction", shown, holds)


def _without_instruction(results: Results) -> list[Claim]:
    run, claims = results["table_2"]["multiverse"], []
    for task in TESTED:
        asked, unasked = (group(run, f"test_{task}", mode)["avg"] for mode in ("parallel", "unasked"))
        text = f"{task}: without the instruction Multiverse answers about as well"
        found = f"{percent(unasked)} against {percent(asked)}"
        claims.append(Claim("table 2", text, found, interval(unasked)[1] >= interval(asked)[0]))
    return claims


def _transfer(results: Results) -> Claim:
    text = f"about {ENOUGH:,} parallel examples are enough"
    runs = {int(count): run for count, run in results["transfer"].items()}
    if ENOUGH not in runs:
        return Claim("rapid transfer", text, "not measured", None)
    names = [f"test_{task}" for task in TESTED]
    found = {name: [group(run, name, "parallel")["avg"]["value"] for run in (runs[ENOUGH], runs[max(runs)])]
             for name in names}  # fmt: skip
    whole = {name: group(results["table_2"]["multiverse"], name, "parallel")["avg"]["value"] for name in names}
    shown = "; ".join(
        f"{task}: {few:.0%} right after {ENOUGH:,}, {most:.0%} after {max(runs):,}, each seen once"
        for task, (few, most) in zip(TESTED, found.values(), strict=True)
    )
    return Claim("rapid transfer", text, shown, all(found[name][0] >= NEAR * whole[name] for name in names))


# SAT


def lengths(results: Results) -> list[dict[str, float]]:
    """By number of variables: accuracy, tokens of the sequential mode, tokens and critical path of the parallel one."""
    rows = []
    for variables in GROWTH:
        name = f"test_sat_{variables}"
        ours = group(results["growth"]["multiverse"], name, "parallel")
        theirs = group(results["growth"]["autoregressive"], name, "sequential")
        rows.append(
            {
                "variables": variables,
                "accuracy": ours["avg"]["value"],
                "accuracy_sequential": theirs["avg"]["value"],
                "sequential": theirs["generated_tokens"],
                "tokens": ours["generated_tokens"],
                "critical_path": ours["critical_path_tokens"],
            }
        )
    return rows


def _growth(results: Results) -> list[Claim]:
    rows = lengths(results)
    at_limit = [row for row in rows if row["variables"] >= SAT_LIMIT]
    shares = [row["critical_path"] / row["sequential"] for row in at_limit]
    equal = [min(row["accuracy"], row["accuracy_sequential"]) >= EQUAL_ACCURACY for row in at_limit]
    shown = "; ".join(
        f"n = {row['variables']}: {row['critical_path']:.0f} of {row['sequential']:.0f} tokens ({share:.0%}), "
        f"{row['accuracy']:.0%} and {row['accuracy_sequential']:.0%} right"
        for row, share in zip(at_limit, shares, strict=True)
    )
    third = Claim(
        "theory", f"from n = {SAT_LIMIT} the critical path is at most a third, at 90% right and more", shown,
        all(share <= 1 / 3 for share in shares) and all(equal),
    )  # fmt: skip
    x = [row["variables"] for row in rows]
    fits = {name: fit(x, [row[name] for row in rows]) for name in ("critical_path", "sequential")}
    line, power = fits["critical_path"], fits["sequential"]
    grows = Claim(
        "theory", "the critical path grows linearly with n, the chain exponentially",
        f"critical path {line.slope:+.1f} tokens a variable (a line explains {line.linear:.1%}, an exponential "
        f"{line.exponential:.1%}); chain times {power.ratio:.2f} a variable (line {power.linear:.1%}, exponential "
        f"{power.exponential:.1%})",
        line.linear > line.exponential and power.exponential > power.linear,
    )  # fmt: skip
    return [third, grows]


@dataclass(frozen=True)
class Fit:
    """Least squares of y over x, and of log y. `linear` and `exponential`: share of y's variance that each explains."""

    slope: float
    ratio: float
    linear: float
    exponential: float


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    slope, start = statistics.linear_regression(x, y)
    log_slope, log_start = statistics.linear_regression(x, [math.log(value) for value in y])
    if not any(value != y[0] for value in y):
        return Fit(0.0, 1.0, 1.0, 1.0)
    explained = [
        1 - sum((v - f) ** 2 for v, f in zip(y, model, strict=True)) / (statistics.pvariance(y) * len(y))
        for model in ([start + slope * v for v in x], [math.exp(log_start + log_slope * v) for v in x])
    ]
    return Fit(slope, math.exp(log_slope), *explained)


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
    claims = []
    for task in TESTED:
        curves = budget_curves(results, task)
        gains = [
            (a["accuracy"]["value"] - b["accuracy"]["value"], a["budget"])
            for a, b in zip(curves["multiverse, parallel"], curves["autoregressive, sequential"], strict=True)
        ]
        mean = statistics.fmean(gain for gain, _ in gains)
        (most, budget), (least, at) = max(gains), min(gains)
        claims.append(
            Claim(
                "figure 7",
                f"{task}: at equal budgets of the critical path Multiverse is ahead",
                f"mean {100 * mean:+.1f} points; most {100 * most:+.1f} at {budget}, least {100 * least:+.1f} at {at}",
                mean > 0,
            )
        )
    return claims


def _speed(results: Results) -> list[Claim]:
    rows = [row for row in results["alone"] if row["parallelism"] > 1]
    if not rows:
        return [Claim("figure 8a", "latency per token falls with parallelism", "no answer ran in parallel", None)]
    shares = [row["speed_up"] / row["parallelism"] for row in rows]
    most = max(rows, key=lambda row: row["parallelism"])
    return [
        Claim(
            "figure 8a", f"at batch 1 the speed-up is at least {NEAR} times the parallelism",
            f"median {statistics.median(shares):.2f} times, {min(shares):.2f} to {max(shares):.2f} over {len(rows)} "
            f"answers; at parallelism {most['parallelism']:.2f}: {most['speed_up']:.2f} times faster a token",
            statistics.median(shares) >= NEAR,
        ),
        Claim(
            "figure 8b", "tokens a second gain at every batch size",
            "; ".join(f"batch {row['batch']}: {row['speed_up']:.2f} at parallelism {row['parallelism']:.2f}"
                      for row in results["in_batches"]),
            all(row["speed_up"] > 1 for row in results["in_batches"]),
        ),
    ]  # fmt: skip


def interval(estimate: Results) -> tuple[float, float]:
    """95%: Wilson's for a share, which has a width also where all or none are right; else the bootstrap's."""
    return tuple(estimate.get("wilson") or (estimate["low"], estimate["high"]))


def percent(estimate: Results) -> str:
    low, high = interval(estimate)
    return f"{estimate['value']:.0%} [{low:.0%}, {high:.0%}]"
