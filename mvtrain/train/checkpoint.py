"""DeepSpeed checkpoints of a run: saved whole or not at all, pruned, and resumed only where resuming is exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mvtrain.train.config import TrainConfig
from mvtrain.train.processes import Ranks

STATE_NAME = "trainer.json"
"""Written last: a checkpoint without it is not complete."""

MUST_MATCH = (
    "scheme", "data", "context", "micro_batch_size", "gradient_accumulation_steps", "learning_rate", "min_lr_ratio",
    "warmup_ratio", "weight_decay", "betas", "max_grad_norm", "max_steps", "precision",
)  # fmt: skip
"""Fields that decide what the next steps compute. Others, such as paths or logging, may change on resume."""


def save_checkpoint(engine: Any, ranks: Ranks, config: TrainConfig, stage: int, step: int) -> Path:
    """Save after `step` steps, then remove all but the `config.keep` newest. Called by every rank."""
    folder = checkpoints_folder(config)
    tag = f"step-{step:06d}"
    if ranks.is_first:
        shutil.rmtree(folder / tag, ignore_errors=True)  # what an interrupted save left
    ranks.wait()
    engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    ranks.wait()
    if ranks.is_first:
        state = {"step": step, "world_size": ranks.world_size, "zero_stage": stage, "config": fingerprint(config)}
        (folder / tag / STATE_NAME).write_text(json.dumps(state, indent=2) + "\n")
        for old in find_checkpoints(config)[: -config.keep]:
            (old / STATE_NAME).unlink()
            shutil.rmtree(old)
    ranks.wait()
    return folder / tag


def matching_checkpoint(config: TrainConfig, world_size: int, stage: int) -> Path | None:
    """The checkpoint to go on from, or None to begin at step 0.

    Raises:
        ValueError: it is of another world size, ZeRO stage or recipe, so going on would not be exact.
    """
    folder = choose_checkpoint(config)
    done = read_state(folder)["step"] if folder else 0
    later = [found for found in find_checkpoints(config) if read_state(found)["step"] > done]
    if later:
        # Pruning goes by steps: it would take theirs for the newer ones and remove this run's.
        raise ValueError(
            f"{config.output_dir} holds checkpoints of a run that went further than step {done} ({later[-1].name}); "
            "choose another output_dir, or remove them"
        )
    if folder is None:
        return None
    problems = mismatches(read_state(folder), config, world_size, stage)
    if problems:
        raise ValueError(
            f"cannot resume from {folder}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
            + "\nUndo the change, or start anew in another output_dir."
        )
    return folder


def load_checkpoint(engine: Any, folder: Path) -> int:
    """Load weights and optimizer. Called by every rank. Returns the number of steps that are done."""
    loaded, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    assert loaded is not None, f"DeepSpeed found no checkpoint in {folder}"
    return read_state(folder)["step"]


def choose_checkpoint(config: TrainConfig) -> Path | None:
    """The folder to resume from, or None to begin at step 0."""
    if config.resume == "never":
        return None
    if config.resume == "auto":
        return next(reversed(find_checkpoints(config)), None)
    if not (Path(config.resume) / STATE_NAME).is_file():
        raise ValueError(f"resume: {config.resume} is no complete checkpoint: it has no {STATE_NAME}")
    return Path(config.resume)


def find_checkpoints(config: TrainConfig) -> list[Path]:
    """Complete checkpoints in output_dir, oldest first."""
    found = [file.parent for file in checkpoints_folder(config).glob(f"step-*/{STATE_NAME}")]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("step-")))


def checkpoints_folder(config: TrainConfig) -> Path:
    return Path(config.output_dir) / "checkpoints"


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE_NAME).read_text())


def fingerprint(config: TrainConfig) -> dict[str, Any]:
    """The fields of MUST_MATCH as JSON has them, those of a group as `group.field`."""
    values = json.loads(config.model_dump_json(include=set(MUST_MATCH)))
    group = values.pop("data")
    return values | {f"data.{key}": value for key, value in group.items()}


def mismatches(state: dict[str, Any], config: TrainConfig, world_size: int, stage: int) -> list[str]:
    """What differs between a saved run and this one, one line each."""
    problems = []
    if state["world_size"] != world_size:
        problems.append(f"it was saved by {state['world_size']} ranks, this run has {world_size}; start as many ranks")
    if state["zero_stage"] != stage:
        problems.append(f"it was saved with ZeRO stage {state['zero_stage']}, this run has stage {stage}")
    now = fingerprint(config)
    problems += [
        f"{key} was {state['config'].get(key)}, now it is {now[key]}"
        for key in now
        if state["config"].get(key) != now[key]
    ]
    return problems
