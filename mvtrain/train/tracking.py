"""Where numbers go: log.jsonl, always, and Weights & Biases, if asked for. Tracking never stops a run."""

from __future__ import annotations

import json
import netrc
import os
import sys
from pathlib import Path
from typing import Any

from mvtrain.train.config import TrainConfig

LOG_NAME = "log.jsonl"
WANDB_HOST = "api.wandb.ai"


class StepLog:
    """One line of JSON per step. Lines from `first_step` on, left by a run that went further, are dropped."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / LOG_NAME
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(self.path) if _step_of(line) <= first_step]
        self.path.write_text("".join(kept))
        self._file = self.path.open("a")

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class NoTracker:
    """Takes what a tracker takes and does nothing."""

    def log(self, record: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


class WandbTracker:
    """A Weights & Biases run. The first failure warns, and the run goes on without."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, record: dict[str, Any]) -> None:
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        self._attempt("log", lambda run: run.log(numbers, step=record["step"]))

    def close(self) -> None:
        self._attempt("finish", lambda run: run.finish())

    def _attempt(self, what: str, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever a tracking service does wrong, training goes on
            self._run = None
            _warn(f"could not {what}", error)


def start_tracker(config: TrainConfig) -> NoTracker | WandbTracker:
    """A tracker for the first rank. A missing or failing wandb costs one warning."""
    wandb_config = config.wandb
    if wandb_config.project is None or wandb_config.mode == "disabled":
        return NoTracker()
    mode = wandb_config.mode
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    try:
        import wandb

        run = wandb.init(
            project=wandb_config.project,
            name=wandb_config.name or Path(config.output_dir).name,
            mode=mode,
            dir=config.output_dir,
            config=config.model_dump(),
            settings=wandb.Settings(silent=True, init_timeout=30),
        )
    except Exception as error:  # ImportError, no network, a wrong key
        _warn("not used", error)
        return NoTracker()
    return WandbTracker(run)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _warn(what: str, error: Exception) -> None:
    reason = str(error).strip().splitlines()[:1] or [""]
    key = os.environ.get("WANDB_API_KEY")
    text = reason[0].replace(key, "***") if key else reason[0]
    print(f"sft: warning: wandb {what}: {type(error).__name__}: {text}; log.jsonl goes on", file=sys.stderr, flush=True)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off when the run was killed
        return float("inf")
