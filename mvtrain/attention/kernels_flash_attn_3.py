"""Varlen attention through flash attention 3 (`flash_attn_interface`), where it is built, on Hopper GPUs.

Shape suffixes: Q queries of a call, S keys of a call, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import torch

from mvtrain.attention.flash_limits import unsupported_by_flash as unsupported
from mvtrain.attention.flash_limits import without_empty_rows
from mvtrain.attention.plan import Call

__all__ = ["NAME", "backward", "forward", "unsupported"]

NAME = "flash_attn 3"


def forward(
    q_QHD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `mvtrain.attention.execute.Kernel`."""
    from flash_attn_interface import _flash_attn_forward

    out_QHD, lse_HQ, *_ = _flash_attn_forward(
        q_QHD, k_SKD, v_SKD, **_lengths(call), softmax_scale=scale, causal=call.causal
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
    from flash_attn_interface import _flash_attn_backward

    dq_QHD, dk_SKD, dv_SKD = (torch.zeros_like(x) for x in (q_QHD, k_SKD, v_SKD))
    _flash_attn_backward(
        dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ.contiguous(), **_lengths(call),
        dq=dq_QHD, dk=dk_SKD, dv=dv_SKD, softmax_scale=scale, is_causal=call.causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    return dq_QHD, dk_SKD, dv_SKD


def _lengths(call: Call) -> dict[str, torch.Tensor | int]:
    return {
        "cu_seqlens_q": call.cu_seqlens_q,
        "cu_seqlens_k": call.cu_seqlens_k,
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
    }
