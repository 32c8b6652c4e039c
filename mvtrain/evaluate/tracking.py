"""An evaluation as a Weights & Biases run: its figures, curves, and a table of all samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvtrain.evaluate.records import Sample
from mvtrain.wandb_run import WandbRun, start_wandb

COLUMNS = (
    "task", "mode", "id", "sample", "budget", "correct", "answer", "reference", "reason", "finish_reason",
    "well_formed", "num_blocks", "num_generated", "critical_path", "parallelism", "seconds", "question", "response",
)  # fmt: skip
MOST_ROWS = 10_000


def log_evaluation(
    project: str, folder: Path, header: Mapping[str, Any], results: Mapping[str, Any], samples: Sequence[Sample]
) -> None:
    """Log a finished evaluation. The same folder always goes to the same run; a failure costs one warning."""
    run_id = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    wanted = WandbRun(
        folder, project, f"evaluate {folder.name}", run_id, dict(header), program="evaluate",
        instead="samples.jsonl and results.json have it all", axis="budget",
    )  # fmt: skip
    tracker = start_wandb(wanted)
    tracker.log(dict(figures(results)))
    for budget, accuracies in curves(results).items():
        tracker.log({"budget": budget, **accuracies})
    tracker.log_table("samples", COLUMNS, [[getattr(s, name) for name in COLUMNS] for s in samples[:MOST_ROWS]])
    tracker.log_file("report", folder / "report.html")
    tracker.close()


def figures(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """("math500/parallel/avg", value) for every measure, with /low and /high of its interval."""
    for group in results["groups"]:
        for name, value in group["measures"].items():
            yield from _flat(f"{group['task']}/{group['mode']}/{name}", value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(name if key == "value" else f"{name}/{key}", inner)
    elif isinstance(value, int | float):
        yield name, value


def curves(results: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Budget -> accuracies of all curves there."""
    points: dict[int, dict[str, float]] = {}
    for curve in results["budgets"]:
        name = f"{curve['task']}/{curve['mode']}/accuracy at budget ({curve['policy']})"
        for point in curve["points"]:
            points.setdefault(point["budget"], {})[name] = point["accuracy"]["value"]
    return dict(sorted(points.items()))
