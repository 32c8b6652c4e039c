"""Where numbers go: log.jsonl, always, and Weights & Biases, if asked for. Tracking never stops a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvtrain.train.checkpoint_files import write_durably
from mvtrain.train.config import TrainConfig
from mvtrain.wandb_run import NoTracker, WandbRun, WandbTracker, start_wandb

LOG_NAME = "log.jsonl"


class StepLog:
    """One line of JSON per step. Lines from `first_step` on, left by a run that went further, are dropped."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / LOG_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = [line for line in _lines(self.path) if step_of_line(line) <= first_step]
        write_durably(self.path, "".join(self.kept))  # a run killed right now must not lose the lines of before
        self._file = self.path.open("a")
        self._warned = False

    def write(self, record: dict[str, Any]) -> None:
        """A disk without room costs lines and one warning, not the run."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        try:
            self._file.close()  # writes what a full disk has not taken, and closes even where that fails again
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            print(f"sft: warning: {self.path}: {error.strerror}; steps are missing", file=sys.stderr, flush=True)
        self._warned = True


class PhaseLoss:
    """Mean loss of a phase so far, over all its targets. Goes on from the log's lines after a restart."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._phase, self._loss, self._targets = "", 0.0, 0
        for line in lines:
            self.add(json.loads(line))

    def add(self, record: dict[str, Any]) -> float | None:
        """After a step: the mean with it."""
        if record["phase"] != self._phase:
            self._phase, self._loss, self._targets = record["phase"], 0.0, 0
        if record["loss"] is not None:
            self._loss += record["loss"] * record["targets"]
            self._targets += record["targets"]
        return self._loss / self._targets if self._targets else None


def start_tracker(config: TrainConfig, run_id: str) -> NoTracker | WandbTracker:
    """A tracker for the first rank. A run that goes on has the same `run_id`."""
    name = config.wandb.name or Path(config.output_dir).name
    folder, wandb = Path(config.output_dir), config.wandb
    return start_wandb(WandbRun(folder, wandb.project, name, run_id, config.model_dump(), wandb.mode))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def step_of_line(line: str) -> float:
    """What a line of JSON says in `step`; infinity where it was cut off."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off when the run was killed
        return float("inf")
