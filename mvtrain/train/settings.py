"""The DeepSpeed configuration of a run: the user's JSON, completed.

The recipe decides what is trained and how; the JSON decides how it is distributed. So batch sizes, precision, clipping
and AdamW's numbers always come from the recipe, and whatever the JSON says of them is replaced.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from mvtrain.train.batching import Batching
from mvtrain.train.config import ConfigError, TrainConfig

SECTIONS = (
    "zero_optimization", "optimizer", "fp16", "bf16", "data_types", "activation_checkpointing", "checkpoint", "aio",
    "flops_profiler", "comms_logger", "tensorboard", "csv_monitor", "compression_training",
)  # fmt: skip
"""Keys whose value is an object."""


def deepspeed_settings(config: TrainConfig, batching: Batching) -> dict[str, Any]:
    """What `deepspeed.initialize` gets. Contains no "auto": DeepSpeed itself would not resolve one.

    Raises:
        ConfigError: the file is not JSON, or asks for what the trainer cannot give.
    """
    settings = _without_auto(_read(Path(config.deepspeed)))
    problems = _sections_that_are_none(settings)
    if problems:
        raise ConfigError([f"{config.deepspeed}: {problem}" for problem in problems])
    zero = settings.setdefault("zero_optimization", {})
    if config.zero_stage is not None:
        zero["stage"] = config.zero_stage
    stage = zero.setdefault("stage", 0)
    problems = _problems(settings, config, stage)
    if problems:
        raise ConfigError([f"{config.deepspeed}: {problem}" for problem in problems])
    # DeepSpeed counts every rank, also those that share a pack.
    settings["train_batch_size"] = batching.packs_per_rank * batching.world_size
    settings["train_micro_batch_size_per_gpu"] = config.micro_batch_size
    settings["gradient_accumulation_steps"] = batching.accumulation_steps
    settings["gradient_clipping"] = config.max_grad_norm  # left out, it would be 1.0
    settings["bf16"] = {**settings.get("bf16", {}), "enabled": config.precision == "bf16"}
    if config.precision == "bf16" and stage > 0:
        # Otherwise micro-batches are summed in bf16, which loses what is small against the sum.
        settings.setdefault("data_types", {"grad_accum_dtype": "fp32"})
    settings["optimizer"] = _optimizer(settings.get("optimizer", {}), config, offload="offload_optimizer" in zero)
    settings.setdefault("steps_per_print", 10**9)
    return settings


def check_with_deepspeed(settings: dict[str, Any], file: str) -> None:
    """Have DeepSpeed read the settings before anything is started: an unknown key, a device that there is not.

    Args:
        file: where they come from, for the message.

    Raises:
        ConfigError: with all that DeepSpeed says of one section.
        ImportError: deepspeed is not installed.
    """
    from mvtrain.train.processes import import_deepspeed

    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from pydantic import ValidationError

    # It would compare this one with the number of ranks, which have not met.
    given = {key: value for key, value in copy.deepcopy(settings).items() if key != "train_batch_size"}
    try:
        DeepSpeedConfig(given)
    except ValidationError as error:
        section = {"DeepSpeedZeroConfig": "zero_optimization"}.get(error.title, error.title)
        raise ConfigError([f"{file}: {section}.{_explain(entry)}" for entry in error.errors()]) from None
    except Exception as error:  # DeepSpeed looks at some sections without checking them
        raise ConfigError([f"{file}: DeepSpeed cannot read it: {type(error).__name__}: {error}"]) from None


def _explain(entry: Any) -> str:
    key = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    return f"{key}: {entry['msg'][:1].lower()}{entry['msg'][1:]}, not {entry['input']!r}"


def zero_stage(settings: dict[str, Any]) -> int:
    return settings["zero_optimization"]["stage"]


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError([f"{path} is not JSON: {error}"]) from None
    if not isinstance(settings, dict):
        raise ConfigError([f"{path}: expected an object, found {type(settings).__name__}"])
    return settings


def _without_auto(value: Any) -> Any:
    """Leave keys with "auto" out, so that the trainer's value or DeepSpeed's default holds."""
    if isinstance(value, dict):
        return {key: _without_auto(inner) for key, inner in value.items() if inner != "auto"}
    return value


def _sections_that_are_none(settings: dict[str, Any]) -> list[str]:
    """Sections that are no objects. Turned-off offloading is left out, so that it can be told by the key alone."""
    found = {name: settings[name] for name in SECTIONS if name in settings}
    if isinstance(settings.get("optimizer"), dict) and "params" in settings["optimizer"]:
        found["optimizer.params"] = settings["optimizer"]["params"]
    zero = settings.get("zero_optimization")
    for name in ("offload_optimizer", "offload_param"):
        if not isinstance(zero, dict) or name not in zero:
            continue
        if zero[name] is None or (isinstance(zero[name], dict) and zero[name].get("device", "none") == "none"):
            del zero[name]
        else:
            found[f"zero_optimization.{name}"] = zero[name]
    return [
        f"{name} should be an object, {{...}}, not {json.dumps(value)}"
        for name, value in found.items()
        if not isinstance(value, dict)
    ]


def _problems(settings: dict[str, Any], config: TrainConfig, stage: int) -> list[str]:
    problems = []
    if settings.get("fp16", {}).get("enabled"):
        problems.append("fp16 is not supported; set `precision` to bf16 or fp32 in the recipe")
    if settings.get("scheduler"):
        problems.append("remove `scheduler`: the recipe's learning_rate, warmup_ratio and min_lr_ratio decide")
    if settings.get("optimizer", {}).get("type", "AdamW") != "AdamW":
        problems.append(f"optimizer {settings['optimizer']['type']} is not supported; use AdamW")
    if stage not in (0, 1, 2, 3):
        problems.append(f"zero_optimization.stage is {stage!r}; choose 0, 1, 2 or 3")
    if config.zero_stage is not None and stage < 3 and settings["zero_optimization"].get("offload_param"):
        problems.append(f"offload_param needs stage 3, and zero_stage {stage} overrides it")
    return problems


def _optimizer(given: dict[str, Any], config: TrainConfig, offload: bool) -> dict[str, Any]:
    numbers = {"lr": config.learning_rate, "betas": list(config.betas), "weight_decay": config.weight_decay}
    params = {**given.get("params", {}), **numbers}
    if not offload:
        params.setdefault("torch_adam", True)  # DeepSpeed's own kernels are compiled on first use
    return {"type": "AdamW", "params": params}
