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
