"""Where numbers go: log.jsonl, always, and Weights & Biases, if asked for. Tracking never stops a run."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvtrain.train.checkpoint_files import write_durably
from mvtrain.train.config import TrainConfig
from mvtrain.train.header import without_secrets

LOG_NAME = "log.jsonl"
WANDB_HOST = "api.wandb.ai"
FINISH_SECONDS = 120
"""How long the end of a run waits for wandb to send the rest."""


class StepLog:
    """One line of JSON per step. Lines from `first_step` on, left by a run that went further, are dropped."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / LOG_NAME
        folder.mkdir(parents=True, exist_ok=True)
        self.kept = [line for line in _lines(self.path) if _step_of(line) <= first_step]
        write_durably(self.path, "".join(self.kept))  # a run killed right now must not lose the lines of before
        self._file = self.path.open("a")
        self._warned = False

    def write(self, record: dict[str, Any]) -> None:
        """A disk without room costs lines and one warning, not the run."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            if not self._warned:
                print(f"sft: warning: {self.path}: {error.strerror}; steps are missing", file=sys.stderr, flush=True)
            self._warned = True

    def close(self) -> None:
        self._file.close()


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
        self._attempt("log", lambda run: run.log(numbers))

    def close(self) -> None:
        """Wait for what is being sent, but not for a service that does not answer."""
        thread = threading.Thread(target=self._attempt, args=("finish", lambda run: run.finish()), daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            _warn("could not send everything", TimeoutError(f"no answer for {FINISH_SECONDS} s"))

    def _attempt(self, what: str, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever a tracking service does wrong, training goes on
            self._run = None
            _warn(f"could not {what}", error)


def start_tracker(config: TrainConfig, run_id: str) -> NoTracker | WandbTracker:
    """A tracker for the first rank. A run that goes on has the same `run_id` and goes on there too.

    A service that cannot be reached or refuses the key costs one warning, and the run is recorded offline; without
    wandb, or with a full disk, it is not recorded there at all.
    """
    if config.wandb.project is None or config.wandb.mode == "disabled":
        return NoTracker()
    mode = config.wandb.mode
    if mode == "auto":
        mode = "online" if _has_key() else "offline"
    for attempt in (mode, "offline") if mode == "online" else (mode,):
        try:
            return WandbTracker(_init(config, run_id, attempt))
        except Exception as error:  # ImportError, no network, a wrong key
            if attempt == "online":
                _forget_failed_run()
            again = f"recording into {config.output_dir}/wandb; `wandb sync` sends it later"
            _warn("not used", error, again if attempt == "online" else "")
    return NoTracker()


def _forget_failed_run() -> None:
    """wandb's background service takes the run's id for used until it is started anew."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown()


def _init(config: TrainConfig, run_id: str, mode: str) -> Any:
    import wandb

    run = wandb.init(
        project=config.wandb.project,
        name=config.wandb.name or Path(config.output_dir).name,
        id=run_id,
        resume="allow",
        mode=mode,
        dir=config.output_dir,
        config=without_secrets(config.model_dump()),
        settings=wandb.Settings(silent=True, init_timeout=30),
    )
    # Steps that are done again after a restart are logged again: the axis is our step, not wandb's count of calls.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(WANDB_HOST) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _warn(what: str, error: Exception, instead: str = "") -> None:
    reason = (str(error).strip().splitlines() or [""])[0]
    text = f"wandb {what}: {type(error).__name__}: {reason}; {instead or 'log.jsonl goes on'}"
    print(f"sft: warning: {without_secrets(text)}", file=sys.stderr, flush=True)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.is_file() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off when the run was killed
        return float("inf")
