"""Evaluations while training: the weights as they are go into a folder, and somebody else measures them.

The trainer knows no engine. `launch/sft.py` gives it an `Evaluate`, which gets the folder and returns figures.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from mvtrain.train.checkpoint_files import write_durably
from mvtrain.train.config import EvaluateConfig
from mvtrain.train.export import write_model
from mvtrain.train.plan import Plan
from mvtrain.train.processes import Ranks

Evaluate = Callable[[EvaluateConfig, Path, Path, int, int, torch.device], "dict[str, float] | None"]
"""(settings, folder of the checkpoint, folder for the results, rank, world size, device) -> figures, on the first rank.

Called by every rank at once."""
LOG_NAME = "evaluations.jsonl"


class EvaluationError(RuntimeError):
    """This rank's part of an evaluation could not be written."""


class Evaluations:
    """Evaluates every so many steps, and at the end. `evaluate` is None where nothing is to be evaluated."""

    def __init__(self, plan: Plan, ranks: Ranks, evaluate: Evaluate | None) -> None:
        self.plan, self.ranks, self.evaluate = plan, ranks, evaluate
        self.settings = plan.config.evaluate
        self.folder = Path(plan.config.output_dir) / "evaluations"

    def is_due(self, step: int, last: int) -> bool:
        every = self.settings.every_steps
        return self.evaluate is not None and every > 0 and (step % every == 0 or step == last)

    def run(self, engine: Any, step: int, stage: int) -> dict[str, float] | None:
        """Figures, named `evaluate/...`, on the first rank. Training goes on as if nothing had happened.

        Raises EvaluationError where this rank's part cannot be written; the others then wait for it.
        """
        folder = self.folder / f"step-{step:06d}"
        try:
            with _undisturbed(engine.module):
                write_model(engine, self.ranks, self.plan, step, stage, folder / "checkpoint")
                figures = self.evaluate(
                    self.settings, folder / "checkpoint", folder, self.ranks.rank, self.ranks.world_size,
                    self.ranks.device,
                )  # fmt: skip
            self.ranks.wait()
            if not self.ranks.is_first:
                return None
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            figures = {f"evaluate/{name}": value for name, value in (figures or {}).items()}
            self._note(step, figures)
        except (OSError, SafetensorError) as error:
            raise EvaluationError(
                f"the evaluation after step {step} could not be written to {folder}: {error}; "
                "free space and start again, or set evaluate.every_steps to 0"
            ) from error
        return figures

    def _note(self, step: int, figures: dict[str, float]) -> None:
        """A line per evaluation; those of steps that are done again are replaced."""
        file = Path(self.plan.config.output_dir) / LOG_NAME
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] < step]
        write_durably(file, "\n".join([*kept, json.dumps({"step": step, **figures})]) + "\n")


@contextmanager
def _undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Put mode and random states back: the next step must be the one that it would have been."""
    training, python, numpy = module.training, random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        module.train(training)
        random.setstate(python)
        np.random.set_state(numpy)
