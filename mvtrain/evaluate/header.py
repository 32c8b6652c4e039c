"""What was evaluated, and how: everything that is needed to repeat a run. No secret is in it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvtrain.evaluate.config import EvaluationConfig
from mvtrain.evaluate.records import MODES, Problem
from mvtrain.evaluate.tasks import fingerprint
from mvtrain.manifest import read_manifest
from mvtrain.prompt import prompt_text
from mvtrain.provenance import processor, sampled_digest, versions, without_secrets

if TYPE_CHECKING:
    from mvtrain.engine import Engine

PACKAGES = ("torch", "transformers", "math-verify", "sympy")
_OF_A_SESSION = ("started", "command", "versions", "hardware", "batch_size", "ranks", "verified")
_CHECKPOINT_FILES = ("*.safetensors", "*.bin", "config.json", "generation_config.json", "tokenizer*", "mvtrain.json")


def run_identity(checkpoint: str, engine: Engine, config: EvaluationConfig) -> dict[str, Any]:
    """What decides the samples. Two runs that differ in it cannot share any."""
    return {
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "scheme": engine.scheme,
        **config.decisive(),
    }


def run_header(
    checkpoint: str,
    engine: Engine,
    config: EvaluationConfig,
    tasks: Mapping[str, tuple[str, Sequence[Problem]]],
    verified: Mapping[str, Any] | str,
    ranks: int,
) -> dict[str, Any]:
    """Plain data. `tasks` maps a task's name to its source and problems."""
    device = engine.model.device
    return without_secrets(
        {
            "checkpoint": {"path": checkpoint, "fingerprint": checkpoint_fingerprint(checkpoint)},
            "manifest": read_manifest(checkpoint) or {},
            "started": now(),
            "command": shlex.join(["mvtrain", *sys.argv[1:]]) if sys.argv[1:] else "",
            "versions": versions(PACKAGES),
            "hardware": _device_name(device),
            "dtype": str(engine.model.dtype).removeprefix("torch."),
            "scheme": engine.scheme,
            "sampling": asdict(config),
            "max_total_tokens": config.max_total_tokens,
            "seeds": [config.seed + k for k in range(config.n)],
            "batch_size": engine.scheduler.max_batch,
            "ranks": ranks,
            "tasks": {
                name: {"source": source, "num_problems": len(problems), "fingerprint": fingerprint(problems)}
                for name, (source, problems) in tasks.items()
            },
            "prompts": {mode: _prompt(engine, mode) for mode in config.modes},
            "verified": verified,
            "identity": run_identity(checkpoint, engine, config),
        }
    )


def continued(before: Mapping[str, Any], this: dict[str, Any]) -> dict[str, Any]:
    """The header of a folder in which a run goes on: what all runs in it have asked for, and each of them.

    The check of the engine counts as passed only if it was made, and passed, by every one.
    """
    session = {name: this[name] for name in _OF_A_SESSION}
    sessions = [*before.get("sessions", []), session]
    checks = [s["verified"] for s in sessions]
    tasks = {**before.get("tasks", {})}
    for name, task in this["tasks"].items():
        if task["num_problems"] >= tasks.get(name, task)["num_problems"]:
            tasks[name] = task
    return {
        **this,
        "started": sessions[0]["started"],
        "sampling": _united(before.get("sampling", {}), this["sampling"]),
        "identity": {**before.get("identity", {}), **this["identity"]},
        "tasks": tasks,
        "prompts": {**before.get("prompts", {}), **this["prompts"]},
        "verified": next((check for check in checks if not isinstance(check, Mapping)), checks[-1]),
        "timings": before.get("timings", []),
        "sessions": sessions,
    }


def _united(before: Mapping[str, Any], this: Mapping[str, Any]) -> dict[str, Any]:
    """Modes, budgets and samples of both; forced answers if one of them has some."""
    if not before:
        return dict(this)
    forced = next((s for s in (this, before) if s["policy"] == "forced"), this)
    return {
        **this,
        "modes": [mode for mode in MODES if mode in (*before["modes"], *this["modes"])],
        "budgets": sorted({*before["budgets"], *this["budgets"]}),
        "n": max(before["n"], this["n"]),
        "policy": forced["policy"],
        "answer_tokens": forced["answer_tokens"],
    }


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def checkpoint_fingerprint(folder: str) -> str:
    """Of weights, configuration and tokenizer; see `sampled_digest`."""
    files = {file for pattern in _CHECKPOINT_FILES for file in Path(folder).glob(pattern) if file.is_file()}
    return sampled_digest(files)


def _prompt(engine: Engine, mode: str) -> str:
    """The whole prompt of a mode, with a place for the question."""
    assert mode in MODES
    return prompt_text(engine.tokenizer, "{question}", parallel=mode == "parallel")


def _device_name(device: Any) -> str:
    if device.type != "cuda":
        return processor()
    import torch

    return torch.cuda.get_device_name(device)
