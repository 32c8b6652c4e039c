"""Which checkpoint a run goes on from, and going on from it, with any number of ranks."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mvtrain import launchers
from mvtrain.train.checkpoint import checkpoints_folder, complete_checkpoints, damaged_checkpoints, step_of
from mvtrain.train.checkpoint_files import STATE_NAME, damage, read_state
from mvtrain.train.config import ConfigError, TrainConfig
from mvtrain.train.identity import differences
from mvtrain.train.processes import Ranks
from mvtrain.train.random_state import load_random_state

Note = Callable[[str], None]


def candidates(config: TrainConfig) -> list[Path]:
    """Complete checkpoints that the run may go on from, the best first. Reads no weights.

    Raises:
        ConfigError: output_dir holds checkpoints of a run that went further than where this one would begin; or it
            holds some, but none that is whole.
        OSError: a file could not be read.
    """
    complete, damaged = complete_checkpoints(config), damaged_checkpoints(config)
    if config.resume == "auto":
        if damaged and not complete:
            raise _nothing_whole(damaged)
        return complete[::-1]
    chosen = [] if config.resume == "never" else [Path(config.resume)]
    for folder in chosen:
        _state(folder)
    done = read_state(chosen[0])["step"] if chosen else 0
    later = [folder for folder in complete if step_of(folder) > done]
    if chosen and _descend(later, fingerprint(chosen[0])):
        return later[::-1] + chosen
    if later:
        # Removing old checkpoints goes by steps: it would take theirs for the newer ones and remove this run's.
        raise ConfigError(
            [
                f"{config.output_dir} holds checkpoints of a run that went further than step {done} "
                f"({later[-1].name}); choose another output_dir, or remove them"
            ]
        )
    return chosen


def fingerprint(folder: Path) -> str:
    """The same for a copy of the checkpoint, and for no other: trainer.json has the checksums of all its files."""
    return hashlib.sha256((folder / STATE_NAME).read_bytes()).hexdigest()[:16]


def descends_from(folder: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What checkpoints of a run that goes on from `folder` shall say of the one that `resume` named at its start."""
    state = read_state(folder)
    if config.resume in ("auto", "never") or Path(config.resume).resolve() != folder.resolve():
        return state.get("resumed_from")
    return {"folder": config.resume, "step": state["step"], "fingerprint": fingerprint(folder)}


def _descend(found: list[Path], ancestor: str) -> bool:
    """Whether all that can be read went on from the checkpoint with this fingerprint, and something can."""
    origins = [(read_state(folder).get("resumed_from") or {}) for folder in filter(is_readable, found)]
    return bool(origins) and all(origin.get("fingerprint") == ancestor for origin in origins)


def _nothing_whole(damaged: list[Path]) -> ConfigError:
    names = ", ".join(folder.name for folder in damaged)
    return ConfigError(
        [
            f"no checkpoint in {damaged[0].parent} is whole (damaged: {names}), and to start anew would lose the run's "
            "log; nothing was changed. Bring one back from a copy, go on from another one (`resume: FOLDER`), or start "
            "anew in another output_dir"
        ]
    )


def saved_packs_per_step(config: TrainConfig, found: list[Path], world_size: int) -> int | None:
    """Packs of a step of the run that goes on, where only the number of ranks would change them."""
    for folder in found:
        try:
            state = read_state(folder)
        except ValueError:
            continue
        if config.packs_per_step is None and state["world_size"] != world_size:
            return state["identity"]["recipe"]["packs_per_step"]
        return None
    return None


def refuse_another_run(folder: Path, now: dict[str, Any], stage: int) -> None:
    """
    Raises:
        ConfigError: the checkpoint is of another recipe, model, data set or ZeRO stage; says what differs.
    """
    state = _state(folder)
    problems = differences(state["identity"], now)
    if state["zero_stage"] != stage:
        problems.append(f"ZeRO stage was {state['zero_stage']}, now it is {stage}")
    if problems:
        raise ConfigError(
            [f"cannot go on from {folder}, it is of another run:"]
            + [f"  {problem}" for problem in problems]
            + ["undo the change, or start anew in another output_dir"]
        )


def first_undamaged(config: TrainConfig, found: list[Path], ranks: Ranks, note: Note) -> Path | None:
    """The first candidate whose files are what was saved. Called by every rank; each reads its share of the files.

    Damaged ones in output_dir are renamed and passed over, if there is one to go on from.

    Raises:
        ConfigError: on every rank: all are damaged, or the one that `resume` names, or a file could not be read.
    """
    damaged: list[Path] = []
    for folder in found:
        problems = _damage_on_all_ranks(folder, ranks)
        if not problems:
            _set_aside(damaged, ranks)
            return folder
        text = f"{folder} is damaged: {'; '.join(problems[:3])}"
        if config.resume != "auto" and folder == Path(config.resume):
            raise ConfigError([f"{text}; give another checkpoint"])
        note(f"warning: {text}; passing over it")
        damaged.append(folder)
    if damaged:
        raise _nothing_whole(damaged)
    return None


def _set_aside(damaged: list[Path], ranks: Ranks) -> None:
    if ranks.is_first:
        for folder in damaged:
            shutil.rmtree(folder.with_name(folder.name + ".damaged"), ignore_errors=True)
            folder.rename(folder.with_name(folder.name + ".damaged"))
    ranks.wait()


def load_checkpoint(engine: Any, folder: Path, ranks: Ranks) -> int:
    """Load weights, optimizer and random states. Called by every rank. Returns the number of steps that are done."""
    state = read_state(folder)
    source = universal_folder(folder) if needs_conversion(folder, ranks) else folder
    settings = [_settings(group) for group in engine.optimizer.param_groups]
    loaded, _ = engine.load_checkpoint(str(source.parent), tag=source.name)
    assert loaded is not None, f"DeepSpeed found no checkpoint in {source}"
    # From a universal checkpoint DeepSpeed's ZeRO-3 gives every group the settings of the first, so that norms would
    # decay, and all of them one tensor as their count of steps, which each would then count up.
    for group, own in zip(engine.optimizer.param_groups, settings, strict=True):
        group.update(own)
    for values in getattr(engine.optimizer, "optimizer", engine.optimizer).state.values():
        if isinstance(values.get("step"), torch.Tensor):
            values["step"] = values["step"].clone()
    load_random_state(folder, ranks.rank)
    ranks.wait()
    if ranks.is_first and source != folder:
        shutil.rmtree(source)
        (source.parent / "latest_universal").unlink(missing_ok=True)  # DeepSpeed's, names what was just removed
    return state["step"]


def make_universal(folder: Path, ranks: Ranks, note: Note) -> None:
    """Convert a checkpoint of another number of ranks into DeepSpeed's universal form, beside it.

    The first rank does it in a process of its own; the others look for its end, as a collective could time out.

    Raises:
        RuntimeError: the conversion failed.
    """
    beside = universal_folder(folder)
    end = beside.with_name(beside.name + ".done")
    if ranks.is_first:
        end.unlink(missing_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
    ranks.wait()
    if ranks.is_first:
        end.write_text(_convert(folder, beside))
    while not end.is_file():
        time.sleep(0.2)
    ranks.wait()
    failure = end.read_text()
    ranks.wait()
    if ranks.is_first:
        end.unlink()
    if failure:
        raise RuntimeError(f"could not convert {folder} for {ranks.world_size} ranks: {failure}")


def universal_folder(folder: Path) -> Path:
    return folder.with_name(folder.name + ".universal")


def needs_conversion(folder: Path, ranks: Ranks) -> bool:
    """Whether it is of another number of ranks; where every rank held everything any number can read it."""
    state = read_state(folder)
    is_divided = any("optim_states" in name for name in state["files"])
    return is_divided and state["world_size"] != ranks.world_size


def is_readable(folder: Path) -> bool:
    """Whether its trainer.json is whole; its other files may be damaged all the same."""
    try:
        read_state(folder)
    except ValueError:
        return False
    return True


def cut_off(config: TrainConfig) -> list[Path]:
    """What interrupted saves left."""
    return sorted(checkpoints_folder(config).glob("step-*.partial"))


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _convert(folder: Path, beside: Path) -> str:
    """Returns what went wrong, or nothing."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder), "--output_folder", str(beside)]
    workers = str(max(1, min(8, (os.cpu_count() or 1) // 2)))
    run = subprocess.run(
        [*command, "--num_extract_workers", workers, "--num_merge_workers", workers],
        env={key: value for key, value in os.environ.items() if key not in launchers.VARIABLES},
        capture_output=True,
        text=True,
    )
    if run.returncode == 0:
        return ""
    shutil.rmtree(beside, ignore_errors=True)
    return (run.stderr.strip().splitlines() or [f"exit status {run.returncode}"])[-1]


def _damage_on_all_ranks(folder: Path, ranks: Ranks) -> list[str]:
    mine, unread = [], None
    try:
        files = sorted(read_state(folder)["files"].items())
        mine = damage(folder, dict(files[ranks.rank :: ranks.world_size]))
    except ValueError as error:
        mine = [str(error)] if ranks.is_first else []
    except OSError as error:
        unread = f"rank {ranks.rank} cannot read {error.filename or folder}: {error.strerror}"
    found = ranks.gather((mine, unread))
    unread = [text for _, text in found if text]
    if unread:
        raise ConfigError([f"{text}; it may be whole, so nothing was changed" for text in unread[:3]])
    return [problem for of_rank, _ in found for problem in of_rank]


def _state(folder: Path) -> dict[str, Any]:
    try:
        return read_state(folder)
    except ValueError as error:
        raise ConfigError([str(error)]) from None
