"""Checkpoints of a run: written beside the last good one, and made current by one renaming.

output_dir/checkpoints/
  step-000100/            complete: everything was on disk before the folder got this name
    trainer.json          step, identity of the run, sizes and checksums of all files
    run.json              configuration and versions
    random_rank_0.pt      random states
    zero_pp_rank_0_...    DeepSpeed's weights and optimizer
  step-000150.partial/    being written, or cut off
  step-000050.damaged/    found not to be what was saved; stays as long as it is not older than all others
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from mvtrain.train.checkpoint_files import STATE_NAME, files_of_rank, seal, sync_folder, write_durably
from mvtrain.train.config import TrainConfig
from mvtrain.train.processes import Ranks
from mvtrain.train.random_state import save_random_state

_NAME = re.compile(r"step-\d+(\.damaged)?")


class SaveError(RuntimeError):
    """A checkpoint could not be written. Those before it are untouched, and nothing half-written is left."""


class _KeepsErrors:
    """DeepSpeed's writer, but a failure is kept for later: raised at once, other ranks would wait for ever."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.error: Exception | None = None

    def save(self, *arguments: Any, **named: Any) -> None:
        try:
            self._writer.save(*arguments, **named)
        except Exception as error:  # torch reports a full disk as OSError or as RuntimeError
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def save_checkpoint(engine: Any, ranks: Ranks, config: TrainConfig, state: dict[str, Any], header: str) -> Path:
    """Save after `state["step"]` steps, then remove checkpoints that need not be kept. Called by every rank.

    Args:
        state: what `trainer.json` says of the run; sizes and checksums are added.
        header: the text of run.json.

    Raises:
        SaveError: on every rank, naming those that failed.
    """
    folder = checkpoints_folder(config) / f"step-{state['step']:06d}"
    beside = folder.with_name(folder.name + ".partial")
    _together(ranks, lambda: _begin(beside) if ranks.is_first else None, beside)
    writer = engine.checkpoint_engine = _KeepsErrors(engine.checkpoint_engine)
    engine._copy_recovery_script = lambda path: None  # our export replaces its scripts
    try:
        engine.save_checkpoint(str(beside.parent), tag=beside.name, save_latest=False)
    finally:
        engine.checkpoint_engine = writer._writer

    def complete() -> dict[str, list[int]]:
        if writer.error is not None:
            raise writer.error
        save_random_state(beside, ranks.rank)
        if ranks.is_first:
            (beside / "run.json").write_text(header)
        return seal(files_of_rank(beside, ranks.rank))

    sealed = _together(ranks, complete, beside)
    state = {**state, "files": {name: facts for of_rank in sealed for name, facts in of_rank.items()}}
    _together(ranks, lambda: _make_current(beside, folder, state) if ranks.is_first else None, beside)
    if ranks.is_first:
        prune(config)
    ranks.wait()
    return folder


def prune(config: TrainConfig) -> None:
    """Remove all but the `keep` newest and the multiples of `keep_every_steps`, and what was cut off.

    The one that `resume` names stays, as the same command shall work again. Damaged ones go once all others are newer.
    """
    complete = complete_checkpoints(config)
    every = config.keep_every_steps
    named = Path(config.resume).resolve()
    for old in complete[: -config.keep]:
        if not (every and step_of(old) % every == 0) and old.resolve() != named:
            condemned = old.with_name(old.name + ".partial")  # so that half of it is never taken for a whole
            shutil.rmtree(condemned, ignore_errors=True)
            old.rename(condemned)
    for partial in checkpoints_folder(config).glob("step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    oldest = step_of(complete_checkpoints(config)[0])
    for damaged in damaged_checkpoints(config):
        if step_of(damaged) < oldest:
            shutil.rmtree(damaged, ignore_errors=True)


def complete_checkpoints(config: TrainConfig) -> list[Path]:
    """Checkpoints in output_dir that were written to the end, oldest first."""
    found = [file.parent for file in checkpoints_folder(config).glob(f"step-*/{STATE_NAME}")]
    return sorted((folder for folder in found if folder.name[5:].isdigit()), key=step_of)


def damaged_checkpoints(config: TrainConfig) -> list[Path]:
    """What was set aside as damaged, and what has its final name but no trainer.json; oldest first."""
    found = [path for path in checkpoints_folder(config).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted((path for path in found if path.suffix or not (path / STATE_NAME).is_file()), key=step_of)


def checkpoints_folder(config: TrainConfig) -> Path:
    return Path(config.output_dir) / "checkpoints"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-").removesuffix(".damaged"))


def _begin(beside: Path) -> None:
    shutil.rmtree(beside, ignore_errors=True)  # what an interrupted save left
    beside.mkdir(parents=True)


def _make_current(beside: Path, folder: Path, state: dict[str, Any]) -> None:
    write_durably(beside / STATE_NAME, json.dumps(state, indent=2) + "\n")
    if folder.exists():  # of a run that went further and was taken back
        shutil.rmtree(folder)
    beside.rename(folder)
    sync_folder(folder.parent)


def _together(ranks: Ranks, action: Any, beside: Path) -> list[Any]:
    """Do it on every rank; where one fails all raise. Returns the results of all ranks."""
    try:
        result, error = action(), None
    except Exception as failure:
        result, error = None, f"{type(failure).__name__}: {str(failure).splitlines()[0][:200]}"
    outcomes = ranks.gather((result, error))
    failures = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(outcomes) if error]
    if not failures:
        return [result for result, _ in outcomes]
    free = _free_gib(beside.parent)  # the folder itself goes away under the ranks that are slower
    if ranks.is_first:
        shutil.rmtree(beside, ignore_errors=True)
    ranks.wait()
    raise SaveError(f"could not save {beside.with_suffix('')} ({free}): " + "; ".join(failures[:4]))


def _free_gib(folder: Path) -> str:
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    return f"{shutil.disk_usage(existing).free / 2**30:.2f} GiB free on its disk"
