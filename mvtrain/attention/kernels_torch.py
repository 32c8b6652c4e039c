"""Varlen attention through the flash kernels inside PyTorch, on CUDA.

With `torch.nn.attention.activate_flash_attention_impl` ("FA3", "FA4") these are replaced by those of the packages.

Shape suffixes: Q queries of a call, S keys of a call, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import torch

from mvtrain.attention.flash_limits import unsupported_by_flash as unsupported
from mvtrain.attention.flash_limits import without_empty_rows
from mvtrain.attention.plan import Call

__all__ = ["NAME", "backward", "forward", "unsupported"]

NAME = "torch flash"


def forward(
    q_QHD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `mvtrain.attention.execute.Kernel`."""
    out_QHD, lse_HQ, *_ = torch.ops.aten._flash_attention_forward(
        q_QHD, k_SKD, v_SKD, *_lengths(call), 0.0, call.causal, False, scale=scale
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
    # Without dropout no random numbers are read.
    seed, offset = (torch.empty(size, dtype=torch.uint64, device=q_QHD.device) for size in ((2,), ()))
    return torch.ops.aten._flash_attention_backward(
        dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ.contiguous(), *_lengths(call), 0.0, call.causal, seed, offset,
        scale=scale,
    )  # fmt: skip


def _lengths(call: Call) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    return call.cu_seqlens_q, call.cu_seqlens_k, call.max_seqlen_q, call.max_seqlen_k
