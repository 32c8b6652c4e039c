"""The page's plots, as SVG that is the same for the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "mvtrain"

from matplotlib import pyplot  # noqa: E402

from reproduction.claims import (  # noqa: E402
    Results,
    budget_curves,
    group,
    in_blocks,
    interval,
    lengths,
    share,
    tasks_of,
    transfer_points,
)


def draw(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plots = {"budgets": _budgets, "growth": _growth, "latency": _latency, "batches": _batches}
    if transfer_points(results):
        plots["transfer"] = _transfer
    for name, plot in plots.items():
        figure = plot(results)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)


def _budgets(results: Results) -> Any:
    tasks = tasks_of(results)
    figure, all_axes = pyplot.subplots(1, len(tasks), figsize=(9, 3.5))
    for axes, task in zip(all_axes, tasks, strict=True):
        for name, points in budget_curves(results, task).items():
            x = [point["budget"] for point in points]
            (line,) = axes.plot(x, [point["accuracy"]["value"] for point in points], marker="o", label=name)
            low, high = zip(*(interval(point["accuracy"]) for point in points), strict=True)
            axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15)
        axes.set(xscale="log", xlabel="budget of the critical path (tokens)", ylabel="accuracy", title=task)
        _ticks(axes, [x for x in (32, 64, 128, 256, 512) if x <= points[-1]["budget"]])
        axes.legend(fontsize=7)
    return figure


def _ticks(axes: Any, values: Sequence[int]) -> None:
    """On a logarithmic axis: these, written out."""
    axes.set_xticks(values, [str(value) for value in values])
    axes.set_xticks([], minor=True)


def _growth(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    rows = lengths(results)
    x = [row["variables"] for row in rows]
    names = {"sequential": "Autoregressive, all tokens", "tokens": "Multiverse, all tokens",
             "critical_path": "Multiverse, critical path"}  # fmt: skip
    for name, label in names.items():
        axes.plot(x, [row[name] for row in rows], marker="o", label=label)
    axes.set(yscale="log", xlabel="variables", ylabel="tokens", xticks=x)
    axes.legend(fontsize=8)
    return figure


def _latency(results: Results) -> Any:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5))
    rows = results["alone"]
    x = [row["parallelism"] for row in rows]
    left.scatter(x, [row["ms_per_token"] for row in rows], s=18, label="an answer in parallel")
    left.scatter([1] * len(x), [row["ms_per_token_sequential"] for row in rows], s=18, label="in sequence")
    left.set(xlabel="parallelism", ylabel="ms a token, batch 1")
    right.scatter(x, [row["speed_up"] for row in rows], s=18, label="an answer")
    ends = [1, max(x)]
    right.plot(ends, ends, color="black", linestyle="--", label="speed-up = parallelism")
    right.set(xlabel="parallelism", ylabel="speed-up of a token over sequence")
    for axes in (left, right):
        axes.legend(fontsize=8)
    return figure


def _batches(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    rows = results["in_batches"]
    x = [row["batch"] for row in rows]
    names = {"tokens_per_second": "in parallel", "tokens_per_second_sequential": "in sequence",
             "tokens_per_second_transformers": "transformers' generate, in sequence"}  # fmt: skip
    for name, label in names.items():
        axes.plot(x, [row[name] for row in rows], marker="o", label=label)
    axes.set(xscale="log", yscale="log", xlabel="problems at a time", ylabel="tokens a second")
    _ticks(axes, x)
    axes.legend(fontsize=8)
    return figure


def _transfer(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(5, 3.5))
    found = transfer_points(results)
    for task in tasks_of(results):
        right = [group(run, f"test_{task}", "parallel")["avg"] for run, _ in found.values()]
        blocks = [share(*in_blocks(results, name, task)) for _, name in found.values()]
        for values, style, what in ((right, "-", "right"), (blocks, ":", "in blocks")):
            shown = [value["value"] for value in values]
            (line,) = axes.plot(list(found), shown, style, marker="o", label=f"{task}: {what}")
            low, high = zip(*(interval(value) for value in values), strict=True)
            axes.fill_between(list(found), low, high, color=line.get_color(), alpha=0.12)
    axes.set(xscale="log", xlabel="examples", ylabel="share of answers")
    _ticks(axes, list(found))
    axes.legend(fontsize=8)
    return figure
