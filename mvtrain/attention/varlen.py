"""Multiverse Attention through flash kernels, without a mask: on the CPU node by node, on CUDA in one varlen call."""

from __future__ import annotations

import torch

from mvtrain.attention.kernels_cpu import NodeAttention
from mvtrain.attention.kernels_cuda import attend_cuda, unsupported_on_cuda
from mvtrain.layout import Layout

CPU_DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def unsupported(q_THD: torch.Tensor) -> str | None:
    """Why these tensors cannot be taken, or None."""
    if q_THD.device.type == "cuda":
        return unsupported_on_cuda(q_THD)
    if q_THD.device.type != "cpu":
        return f"no flash kernel for device {q_THD.device.type!r}; use cpu or cuda"
    if q_THD.dtype not in CPU_DTYPES:
        return f"no flash kernel for {q_THD.dtype} on the CPU; use float32 or bfloat16"
    return None


def attend(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """See `mvtrain.attention.attend`."""
    if q_THD.device.type == "cuda":
        return attend_cuda(q_THD, k_TKD, v_TKD, layout, scale)
    return NodeAttention.apply(q_THD, k_TKD, v_TKD, layout, scale)
