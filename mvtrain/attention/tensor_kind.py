"""What the choice of a kernel depends on."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TensorKind(NamedTuple):
    """All that the queries, keys and values of one model have in common, whatever their length."""

    device: torch.device
    dtype: torch.dtype
    num_groups: int
    """Query heads per key head."""
    width: int
    """Of a head."""

    @classmethod
    def of(cls, q_THD: torch.Tensor, k_TKD: torch.Tensor) -> TensorKind:
        return cls(q_THD.device, q_THD.dtype, q_THD.shape[1] // k_TKD.shape[1], q_THD.shape[2])


def check_length(q_THD: torch.Tensor, num_tokens: int) -> None:
    """Raise ValueError unless a layout of `num_tokens` tokens is for these queries."""
    if q_THD.shape[0] != num_tokens:
        raise ValueError(f"the layout describes {num_tokens} tokens, q has {q_THD.shape[0]}: {tuple(q_THD.shape)}")
