"""Multiverse Attention with a dense mask. Slow and large, and the definition of what is correct.

Shape suffixes: T tokens, H query heads, K key heads, G query heads per key head, D head width.
"""

from __future__ import annotations

import torch

from mvtrain.attention.tensor_kind import TensorKind, check_length
from mvtrain.layout import Layout


def unsupported(tensors: TensorKind) -> str | None:
    """Why such tensors cannot be taken, or None. The reference takes everything."""
    return None


def attend(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """See `mvtrain.attention.attend`. Scores and softmax in at least float32."""
    check_length(q_THD, layout.num_tokens)
    num_groups = q_THD.shape[1] // k_TKD.shape[1]
    work = torch.promote_types(q_THD.dtype, torch.float32)
    q_TKGD = q_THD.to(work).unflatten(1, (-1, num_groups))
    scores_KGTT = torch.einsum("tkgd,skd->kgts", q_TKGD, k_TKD.to(work)) * scale
    mask_TT = layout.dense_mask().to(q_THD.device)
    weights_KGTT = scores_KGTT.masked_fill(~mask_TT, float("-inf")).softmax(-1)
    return torch.einsum("kgts,skd->tkgd", weights_KGTT, v_TKD.to(work)).flatten(1, 2).to(q_THD.dtype)
