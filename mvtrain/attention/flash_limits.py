"""What every flash kernel on CUDA has in common."""

from __future__ import annotations

import torch

from mvtrain.attention.tensor_kind import TensorKind

MAX_HEAD_WIDTH = 256


def unsupported_by_flash(tensors: TensorKind) -> str | None:
    """Why no flash kernel can take such tensors, or None. What else may be in the way, a probe call finds."""
    if tensors.dtype not in (torch.bfloat16, torch.float16):
        return f"flash kernels take bfloat16 and float16, not {tensors.dtype}; train with `precision: bf16`"
    if tensors.width > MAX_HEAD_WIDTH or tensors.width % 8:
        return f"flash kernels take head widths up to {MAX_HEAD_WIDTH} that 8 divides, not {tensors.width}"
    if torch.cuda.get_device_capability(tensors.device) < (8, 0):
        return "flash kernels need a GPU of compute capability 8.0 (Ampere) or newer"
    return None


def without_empty_rows(lse_HQ: torch.Tensor) -> torch.Tensor:
    """Queries without keys have the log-sum-exp -inf; some flash kernels write +inf."""
    return lse_HQ.masked_fill_(lse_HQ == float("inf"), float("-inf"))
