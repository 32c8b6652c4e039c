"""What the trainer calls every so many steps: a small evaluation on all ranks, each with an engine of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mvtrain.evaluate.config import EvaluationConfig
from mvtrain.evaluate.evaluation import Evaluation
from mvtrain.evaluate.ranks import EvaluationRanks
from mvtrain.evaluate.tasks import load_task
from mvtrain.evaluate.tracking import figures

SHOWN = ("avg", "well_formed", "with_blocks", "truncated", "parallelism", "critical_path_tokens")


def evaluate_in_training(
    settings: Any, checkpoint: Path, folder: Path, rank: int, world_size: int, device: torch.device
) -> dict[str, float] | None:
    """Measure a checkpoint that training has just written. Called by every rank, with its process group running.

    Args:
        settings: the section `evaluate` of a recipe.
        folder: for the results; what is there of the same step is replaced.

    Returns:
        The figures, on the first rank; None on the others.
    """
    from mvtrain.engine import Engine

    ranks = EvaluationRanks(rank, world_size)
    problems = load_task(settings.task, settings.data_dir, settings.limit)
    config = EvaluationConfig(
        modes=tuple(settings.modes), max_tokens=settings.max_tokens, temperature=settings.temperature
    )
    engine = Engine.from_pretrained(str(checkpoint), device=str(device), max_batch=settings.batch_size)
    tasks = {problems[0].task: (settings.task, problems)}
    evaluation = Evaluation(engine, str(checkpoint), tasks, config, str(folder), ranks, overwrite=True, show=False)
    evaluation.run()
    if not ranks.is_first:
        return None
    evaluation.close()
    results = evaluation.write_results(evaluation.samples(), report=settings.report)
    groups = [{**g, "measures": {k: v for k, v in g["measures"].items() if k in SHOWN}} for g in results["groups"]]
    return {name: value for name, value in figures({"groups": groups}) if name.count("/") == 2}


def check_task(settings: Any) -> None:
    """Read the task before hours of training begin. Raises what `load_task` raises."""
    load_task(settings.task, settings.data_dir, settings.limit)
