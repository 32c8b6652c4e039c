"""From a checkpoint folder and settings to a DeepSpeed engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from mvtrain.attention import register
from mvtrain.attention.checkpointing import contexts_that_save_attention
from mvtrain.train.config import TrainConfig
from mvtrain.train.model import SumOfTokenLosses, parameter_groups
from mvtrain.train.processes import import_deepspeed
from mvtrain.train.settings import zero_stage

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def start_engine(config: TrainConfig, settings: dict[str, Any]) -> Any:
    """A DeepSpeed engine around `SumOfTokenLosses`. Called by every rank; the process group is up."""
    deepspeed = import_deepspeed()
    torch.manual_seed(config.seed)
    if torch.distributed.get_rank() > 0 or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    module = SumOfTokenLosses(load_lm(config, settings), config.loss_chunk, config.attention)
    module.train()
    if config.gradient_checkpointing:
        contexts = {"context_fn": contexts_that_save_attention} if config.save_attention else {}
        module.lm.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=parameter_groups(module, config.weight_decay), config=settings
    )
    return engine


def load_lm(config: TrainConfig, settings: dict[str, Any]) -> torch.nn.Module:
    """The checkpoint as a transformers model; with ZeRO-3 no rank ever holds the whole of it."""
    if zero_stage(settings) < 3:
        return read_checkpoint(config.model, DTYPES[config.precision])
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    partitioned = HfDeepSpeedConfig(settings)  # from_pretrained finds it by a weak reference: it must live
    try:
        return read_checkpoint(config.model, DTYPES[config.precision])
    finally:
        unset_hf_deepspeed_config()  # models loaded later (the exported one) are whole
        del partitioned


def read_checkpoint(folder: str | Path, dtype: torch.dtype) -> torch.nn.Module:
    """A checkpoint with Multiverse Attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=register())


def set_learning_rate(engine: Any, rate: float) -> None:
    """Set the rate of the next update."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def gradient_norm(engine: Any) -> float | None:
    """The global gradient norm of the last update, before clipping; None where DeepSpeed did not compute one."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
