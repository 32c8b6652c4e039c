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
from mvtrain.train.model import CORRECTS_TAGS, SumOfTokenLosses, parameter_groups
from mvtrain.train.processes import import_deepspeed
from mvtrain.train.settings import zero_stage

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def start_engine(config: TrainConfig, settings: dict[str, Any], tag_ids: tuple[int, ...], group: Any = None) -> Any:
    """A DeepSpeed engine around `SumOfTokenLosses`. Called by every rank; the process group is up.

    Args:
        tag_ids: of the tags, for a learning rate of their own where the recipe asks for one.
        group: ranks that share each sequence's tokens.
    """
    deepspeed = import_deepspeed()
    torch.manual_seed(config.seed)
    if torch.distributed.get_rank() > 0 or not sys.stderr.isatty():
        transformers.logging.disable_progress_bar()
    own_rate = tag_ids if config.tag_learning_rate else None
    module = SumOfTokenLosses(load_lm(config, settings), config.loss_chunk, config.attention, own_rate, group)
    module.train()
    if config.gradient_checkpointing:
        contexts = {"context_fn": contexts_that_save_attention} if config.save_attention else {}
        module.lm.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=parameter_groups(module, config.weight_decay), config=settings
    )
    _undo_first_update(engine.optimizer)
    if not hasattr(engine.optimizer, "overflow"):
        _skip_steps_that_are_not_finite(engine)
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


def set_learning_rate(engine: Any, rate: float, corrections: float = 0.0) -> None:
    """Set the rate of the next update, and that of the corrections of the tags' rows."""
    for group in engine.optimizer.param_groups:
        group["lr"] = corrections if group.get(CORRECTS_TAGS) else rate


def _undo_first_update(optimizer: Any) -> None:
    """DeepSpeed's optimizer for bf16 at ZeRO stage 0 makes an update on zero gradients, to have its states early.

    Adam would count it: the bias corrections of every step would be those of the next one, and the first update 0.73 of
    what it should be. The states come back with the first real update, or with a checkpoint.
    """
    if not hasattr(optimizer, "fp32_groups"):
        return
    for masters, weights in zip(optimizer.fp32_groups, optimizer.fp16_groups, strict=True):
        for master, weight in zip(masters, weights, strict=True):
            master.data.copy_(weight.data)
    optimizer.optimizer.state.clear()


def _skip_steps_that_are_not_finite(engine: Any) -> None:
    """What DeepSpeed's own optimizers do, for the plain one that it uses at ZeRO stage 0 in fp32.

    They compute the norm, skip the step where it is not finite, and say so in `overflow`.
    """
    optimizer, step, limit = engine.optimizer, engine.optimizer.step, engine.gradient_clipping()
    engine.clip_fp32_gradients = lambda: None  # here instead

    def guarded_step(*args: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.overflow = not bool(torch.isfinite(norm))
        optimizer._global_grad_norm = norm
        if optimizer.overflow:
            return
        if limit > 0:
            torch.nn.utils.clip_grads_with_norm_(engine.module.parameters(), limit, norm)
        step(*args, **kwargs)

    optimizer.step = guarded_step


def gradient_norm(engine: Any) -> float | None:
    """The global gradient norm of the last update, before clipping; None where DeepSpeed did not compute one."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)
