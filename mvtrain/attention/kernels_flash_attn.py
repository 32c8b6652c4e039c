"""Varlen attention through the `flash_attn` package, version 2.7 and later, on CUDA.

Shape suffixes: Q queries of a call, S keys of a call, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import torch

from mvtrain.attention.flash_limits import unsupported_by_flash as unsupported
from mvtrain.attention.flash_limits import without_empty_rows
from mvtrain.attention.plan import Call

__all__ = ["NAME", "backward", "forward", "unsupported"]

NAME = "flash_attn 2"


def forward(
    q_QHD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `mvtrain.attention.execute.Kernel`."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    out_QHD, lse_HQ, *_ = _flash_attn_varlen_forward(
        q_QHD, k_SKD, v_SKD, *_lengths(call), dropout_p=0.0, softmax_scale=scale, causal=call.causal
    )
    return out_QHD, without_empty_rows(lse_HQ)


def backward(
    dout_QHD: torch.Tensor,
    q_QHD: torch.Tensor,
    k_SKD: torch.Tensor,
    v_SKD: torch.Tensor,
    out_QHD: torch.Tensor,
    lse_HQ: torch.Tensor,
    call: Call,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `mvtrain.attention.execute.Kernel`. Deterministic under `torch.use_deterministic_algorithms(True)`."""
    from flash_attn.flash_attn_interface import _flash_attn_varlen_backward

    # Zeros, since not every version writes the rows of sequences that have no queries or no keys.
    gradients = tuple(torch.zeros_like(x) for x in (q_QHD, k_SKD, v_SKD))
    _flash_attn_varlen_backward(
        dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ.contiguous(), *gradients, *_lengths(call),
        dropout_p=0.0, softmax_scale=scale, causal=call.causal, window_size_left=-1, window_size_right=-1,
        softcap=0.0, alibi_slopes=None, deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return gradients


def _lengths(call: Call) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return call.cu_seqlens_q, call.cu_seqlens_k, call.max_seqlen_q, call.max_seqlen_k
