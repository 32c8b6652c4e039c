"""What a run is made of, in a form that can be compared: recipe, model and data."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvtrain.provenance import sampled_digest
from mvtrain.train.config import TrainConfig
from mvtrain.train.plan import Plan

MUST_MATCH = (
    "data", "context", "learning_rate", "tag_learning_rate", "min_lr_ratio", "warmup_ratio", "weight_decay", "betas",
    "max_grad_norm", "max_steps", "precision",
)  # fmt: skip
"""Keys of the recipe that decide what the next steps compute. Others, such as paths or logging, may change."""

UNIMPORTANT = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache")
"""Keys of a model's config.json that do not change what it computes."""


def identity(config: TrainConfig, plan: Plan) -> dict[str, dict[str, Any]]:
    """{"recipe": ..., "model": ..., "data": ...} of plain JSON values."""
    model = json.loads((Path(config.model) / "config.json").read_text())
    return {
        "recipe": {"scheme": plan.scheme, "packs_per_step": plan.batching.packs_per_step, **_recipe(config)},
        "model": {key: value for key, value in model.items() if key not in UNIMPORTANT}
        | {"weights": weights_digest(Path(config.model))},
        # By place and content: a file may move between two parts of a run.
        "data": {f"source {number}": _data(plan, source) for number, source in enumerate(plan.reports, 1)},
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each value that is not the same."""
    lines = []
    for part in ("recipe", "model", "data"):
        before, after = saved.get(part, {}), now[part]
        for key in dict.fromkeys([*before, *after]):
            if before.get(key) != after.get(key):
                name = key if part == "recipe" else f"{part} {key}"
                lines.append(f"{name} was {_show(before.get(key))}, now it is {_show(after.get(key))}")
    return lines


def weights_digest(folder: Path) -> str:
    """Of names, sizes and sampled bytes of the weight files: another checkpoint has another one."""
    return sampled_digest([*folder.glob("*.safetensors"), *folder.glob("*.bin")])[:16]


def _recipe(config: TrainConfig) -> dict[str, Any]:
    values = json.loads(config.model_dump_json(include=set(MUST_MATCH)))
    # Files are compared by what they hold, below.
    group = {key: value for key, value in values.pop("data").items() if key not in ("parallel", "sequential")}
    return values | {f"data.{key}": value for key, value in group.items()}


def _data(plan: Plan, source: str) -> dict[str, Any]:
    """Counts for people, and a checksum of all tokens and of where the answers begin."""
    report = plan.reports[source]
    start = 0
    for name, other in plan.reports.items():
        if name == source:
            break
        start += other.num_kept
    checksum = 0
    for example in plan.examples[start : start + report.num_kept]:
        checksum = zlib.crc32(example.input_ids.tobytes(), checksum)
        checksum = zlib.crc32(str(example.prompt_length).encode(), checksum)
    kind = source.split()[0]
    return {"kind": kind, "examples": report.num_kept, "tokens": report.num_tokens, "checksum": f"{checksum:08x}"}


def _show(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, dict):
        return ", ".join(str(v) if k == "kind" else f"{k} {v}" for k, v in value.items())
    return str(value)
