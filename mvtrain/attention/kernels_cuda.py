"""One causal varlen call on CUDA: the `flash_attn` package where it is installed, else PyTorch's own flash kernel.

Shape suffixes: T tokens, H query heads, K key heads, D head width, S gathered keys.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch

from mvtrain.attention.plan import VarlenPlan, varlen_plan
from mvtrain.layout import Layout

MAX_HEAD_WIDTH = 256


def unsupported_on_cuda(q_THD: torch.Tensor) -> str | None:
    """Why the flash kernels cannot take these tensors, or None."""
    if q_THD.dtype not in (torch.bfloat16, torch.float16):
        return f"flash kernels take bfloat16 and float16, not {q_THD.dtype}; train with `precision: bf16`"
    if q_THD.shape[-1] > MAX_HEAD_WIDTH or q_THD.shape[-1] % 8:
        return f"flash kernels take head widths up to {MAX_HEAD_WIDTH} that 8 divides, not {q_THD.shape[-1]}"
    if torch.cuda.get_device_capability(q_THD.device) < (8, 0):
        return "flash kernels need a GPU of compute capability 8.0 (Ampere) or newer"
    return None


def attend_cuda(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, layout: Layout, scale: float
) -> torch.Tensor:
    """See `mvtrain.attention.attend`. The keys of each query run are gathered behind each other."""
    plan = varlen_plan(layout).on(q_THD.device)
    if plan.key_index_S is not None:
        k_TKD = k_TKD.index_select(0, plan.key_index_S)
        v_TKD = v_TKD.index_select(0, plan.key_index_S)
    call = _flash_attn_call if _has_flash_attn() else _aten_call
    return call(q_THD.contiguous(), k_TKD.contiguous(), v_TKD.contiguous(), plan, scale)


@cache
def _has_flash_attn() -> bool:
    return importlib.util.find_spec("flash_attn") is not None


def _flash_attn_call(
    q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, plan: VarlenPlan, scale: float
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q_THD,
        k_SKD,
        v_SKD,
        plan.cu_seqlens_q,
        plan.cu_seqlens_k,
        plan.max_seqlen_q,
        plan.max_seqlen_k,
        softmax_scale=scale,
        causal=True,
    )


def _aten_call(
    q_THD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, plan: VarlenPlan, scale: float
) -> torch.Tensor:
    dropout, causal, debug_mask = 0.0, True, False
    return torch.ops.aten._flash_attention_forward(
        q_THD,
        k_SKD,
        v_SKD,
        plan.cu_seqlens_q,
        plan.cu_seqlens_k,
        plan.max_seqlen_q,
        plan.max_seqlen_k,
        dropout,
        causal,
        debug_mask,
        scale=scale,
    )[0]
