"""Attention over a sequence whose tokens are divided among ranks (DeepSpeed-Ulysses, Jacobs et al. 2023).

Every rank of a group holds T / S consecutive tokens with all heads. Before attention the ranks exchange, so that each
holds all T tokens with 1 / S of the heads, and attention runs as if nothing had happened: the layout stays that of the
whole sequence. Afterwards they exchange back.

Shape suffixes: T tokens of the whole sequence, t tokens of one rank, S ranks of the group, H query heads, K key heads,
h heads of one rank, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def attend_in_group(q_tHD: torch.Tensor, k_tKD: torch.Tensor, v_tKD: torch.Tensor, attend: Attention, group: Any):
    """Attention of this rank's tokens to the whole sequence. Called by every rank of the group.

    Args:
        attend: (q_ThD, k_ThD, v_ThD) -> out_ThD, over the whole sequence.

    Returns:
        (t, H, D).
    """
    size = distributed.get_world_size(group)
    repeats = key_head_repeats(q_tHD.shape[1], k_tKD.shape[1], size)
    k_tKD, v_tKD = (x.repeat_interleave(repeats, dim=1) for x in (k_tKD, v_tKD))
    q, k, v = (_ToHeads.apply(x, group) for x in (q_tHD, k_tKD, v_tKD))
    return _ToTokens.apply(attend(q, k, v), group)


def key_head_repeats(num_heads: int, num_key_heads: int, size: int) -> int:
    """How often each key head has to be repeated, so that every rank gets those that its query heads need.

    Raises:
        ValueError: the heads cannot be divided among `size` ranks.
    """
    repeats = size // math.gcd(num_key_heads, size)
    if num_heads % size or num_heads % (num_key_heads * repeats):
        possible = [n for n in range(1, num_heads + 1) if num_heads % n == 0 and _divides(num_heads, num_key_heads, n)]
        raise ValueError(
            f"{num_heads} query heads and {num_key_heads} key heads cannot be divided among {size} ranks; "
            f"sequence_parallel_size may be one of {', '.join(map(str, possible))}"
        )
    return repeats


def heads_of_rank(num_heads: int, num_key_heads: int, size: int) -> tuple[int, int]:
    """Query heads and key heads that one rank computes."""
    return num_heads // size, num_key_heads * key_head_repeats(num_heads, num_key_heads, size) // size


def _divides(num_heads: int, num_key_heads: int, size: int) -> bool:
    return num_heads % (num_key_heads * (size // math.gcd(num_key_heads, size))) == 0


class _ToHeads(torch.autograd.Function):
    """(t, H, D) of own tokens -> (T, h, D) of own heads."""

    @staticmethod
    def forward(ctx: Any, x_tHD: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _to_heads(x_tHD, group)

    @staticmethod
    def backward(ctx: Any, grad_ThD: torch.Tensor):
        return _to_tokens(grad_ThD, ctx.group), None


class _ToTokens(torch.autograd.Function):
    """(T, h, D) of own heads -> (t, H, D) of own tokens."""

    @staticmethod
    def forward(ctx: Any, x_ThD: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return _to_tokens(x_ThD, group)

    @staticmethod
    def backward(ctx: Any, grad_tHD: torch.Tensor):
        return _to_heads(grad_tHD, ctx.group), None


def _to_heads(x_tHD: torch.Tensor, group: Any) -> torch.Tensor:
    size = distributed.get_world_size(group)
    sent_SthD = x_tHD.unflatten(1, (size, -1)).transpose(0, 1)
    return _exchange(sent_SthD, group).flatten(0, 1)


def _to_tokens(x_ThD: torch.Tensor, group: Any) -> torch.Tensor:
    size = distributed.get_world_size(group)
    received_SthD = _exchange(x_ThD.unflatten(0, (size, -1)), group)
    return received_SthD.transpose(0, 1).flatten(1, 2)


def _exchange(x: torch.Tensor, group: Any) -> torch.Tensor:
    """Slice i of the first dimension goes to rank i; slice i of the result came from it."""
    sent = x.contiguous()
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=group)
    return received
