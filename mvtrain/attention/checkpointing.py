"""Activation checkpointing that recomputes a layer but for its attention.

    checkpoint(layer, hidden, use_reentrant=False, context_fn=contexts_that_save_attention)

Attention is most of a layer's time at long contexts, and its output is small next to what the rest of a layer keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

import mvtrain.attention.varlen  # noqa: F401  defines the operator


def contexts_that_save_attention() -> tuple[Any, Any]:
    """The `context_fn` of `torch.utils.checkpoint.checkpoint`; saves the outputs of `mvtrain::attention`."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if operator == torch.ops.mvtrain.attention.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
