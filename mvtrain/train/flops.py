"""Arithmetic of a training step, and the share of a device's peak that it reaches (MFU, Chowdhery et al. 2022).

FLOPs count 6 per parameter and token (the head included, the embedding's look-up not) and 12 x head width per visible
pair, query head and layer. What checkpointing computes twice does not count.
"""

from __future__ import annotations

from typing import Any

import torch

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16, from the data sheets of the SXM versions, by a part of the device's name."""


def step_flops(config: Any, num_parameters: int, num_tokens: int, num_visible_pairs: int) -> float:
    """FLOPs of forward and backward.

    Args:
        config: transformers configuration.
        num_parameters: of the whole model, a tied matrix once.
        num_visible_pairs: (query, key) pairs of all layouts.
    """
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    attention = 12 * width * config.num_attention_heads * config.num_hidden_layers * num_visible_pairs
    return 6.0 * (num_parameters - embedding) * num_tokens + attention


def peak_flops(device: torch.device) -> float | None:
    """Of a CUDA device that is known; else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for part, value in PEAK_FLOPS.items() if part in name), None)
