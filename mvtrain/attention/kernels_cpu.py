"""Varlen attention on the CPU: PyTorch's flash kernel, one sequence at a time.

The kernel has no varlen form and no causal mask aligned at the bottom right, so a causal sequence with more keys than
queries takes two calls, earlier keys without a mask and own keys with one, joined by their log-sum-exp.

Shape suffixes: Q queries of a call, S keys of a call, N queries and P keys of one sequence, H query heads, K key heads,
G query heads per key head (H = K * G), D head width, C chunks of queries, M queries of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from mvtrain.attention.merge import merge_
from mvtrain.attention.plan import Call
from mvtrain.attention.tensor_kind import TensorKind

NAME = "torch CPU flash"

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

LONG = 512
"""From this many queries and keys on, the backward kernel is as fast in bfloat16 as in float32; below, up to 7 times
slower."""

MAX_ROWS = 1024
"""Queries of a rectangle at a time: what is copied for the kernel stays small beside the tensors themselves."""


def unsupported(tensors: TensorKind) -> str | None:
    """Why this kernel cannot take such tensors, or None."""
    if tensors.dtype not in (torch.float64, torch.float32, torch.bfloat16):
        return f"no flash kernel for {tensors.dtype} on the CPU; use float32 or bfloat16"
    return None


def forward(
    q_QHD: torch.Tensor, k_SKD: torch.Tensor, v_SKD: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out_QHD and the log-sum-exp of the scaled scores, (H, Q), -inf for queries without keys.

    Both in at least float32, in which the kernel is as fast as in bfloat16 and parts lose nothing before they are
    joined.
    """
    work = torch.promote_types(q_QHD.dtype, torch.float32)
    q_QHD, k_SKD, v_SKD = (x.to(work) for x in (q_QHD, k_SKD, v_SKD))
    out_QHD = torch.zeros_like(q_QHD)
    lse_HQ = torch.full((q_QHD.shape[1], q_QHD.shape[0]), float("-inf"), dtype=work)
    for queries, keys in _sequences(call):
        part_NHD, part_HN = _forward_sequence(q_QHD[queries], k_SKD[keys], v_SKD[keys], call.causal, scale)
        out_QHD[queries], lse_HQ[:, queries] = part_NHD, part_HN
    return out_QHD, lse_HQ


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
    """Returns dq, dk, dv in at least float32. `out` and `lse` are those of the joined result."""
    work = torch.promote_types(q_QHD.dtype, torch.float32)
    dq_QHD, dk_SKD, dv_SKD = (torch.zeros_like(x, dtype=work) for x in (q_QHD, k_SKD, v_SKD))
    for queries, keys in _sequences(call):
        saved = (dout_QHD[queries], q_QHD[queries], k_SKD[keys], v_SKD[keys], out_QHD[queries], lse_HQ[:, queries])
        dq_QHD[queries], dk_PKD, dv_PKD = _backward_sequence(*saved, call.causal, scale)
        dk_SKD[keys] += dk_PKD
        dv_SKD[keys] += dv_PKD
    return dq_QHD, dk_SKD, dv_SKD


def _sequences(call: Call) -> Iterator[tuple[slice, slice]]:
    """(queries, keys) of all that is computed; without a causal mask no more than MAX_ROWS queries at a time."""
    query = key = 0
    for length_q, length_k in zip(call.lengths_q, call.lengths_k, strict=True):
        step = max(length_q, 1) if call.causal else MAX_ROWS
        for start in range(0, length_q if length_k else 0, step):
            yield slice(query + start, query + min(start + step, length_q)), slice(key, key + length_k)
        query, key = query + length_q, key + length_k


def _forward_sequence(q_NHD, k_PKD, v_PKD, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    if not causal:
        return _forward_rectangle(q_NHD, k_PKD, v_PKD, scale)
    own = len(k_PKD) - len(q_NHD)
    out_NHD, lse_HN = _forward_triangle(q_NHD, k_PKD[own:], v_PKD[own:], scale)
    if own:
        merge_(out_NHD, lse_HN, *_forward_rectangle(q_NHD, k_PKD[:own], v_PKD[:own], scale))
    return out_NHD, lse_HN


def _backward_sequence(dout_NHD, q_NHD, k_PKD, v_PKD, out_NHD, lse_HN, causal: bool, scale: float):
    if not causal:
        return _backward_rectangle(dout_NHD, q_NHD, k_PKD, v_PKD, out_NHD, lse_HN, scale)
    own = len(k_PKD) - len(q_NHD)
    dq_NHD, *dkv = _backward_triangle(dout_NHD, q_NHD, k_PKD[own:], v_PKD[own:], out_NHD, lse_HN, scale)
    if not own:
        return dq_NHD, *dkv
    before_NHD, *before = _backward_rectangle(dout_NHD, q_NHD, k_PKD[:own], v_PKD[:own], out_NHD, lse_HN, scale)
    return dq_NHD + before_NHD, *(torch.cat(pair) for pair in zip(before, dkv, strict=True))


def _forward_triangle(q_NHD, k_NKD, v_NKD, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    num_groups = q_NHD.shape[1] // k_NKD.shape[1]
    k_NHD, v_NHD = _repeat(k_NKD, num_groups), _repeat(v_NKD, num_groups)
    out, lse = _forward(*(x.transpose(0, 1)[None] for x in (q_NHD, k_NHD, v_NHD)), 0.0, True, scale=scale)
    return out[0].transpose(0, 1), lse[0]


def _backward_triangle(dout_NHD, q_NHD, k_NKD, v_NKD, out_NHD, lse_HN, scale: float):
    num_groups = q_NHD.shape[1] // k_NKD.shape[1]
    tensors = (dout_NHD, q_NHD, _repeat(k_NKD, num_groups), _repeat(v_NKD, num_groups), out_NHD)
    dq, dk, dv = _call_backward(*(x.transpose(0, 1)[None] for x in tensors), lse_HN[None], True, scale)
    dk_NHD, dv_NHD = (x[0].transpose(0, 1) for x in (dk, dv))
    return dq[0].transpose(0, 1), _sum_groups(dk_NHD, num_groups), _sum_groups(dv_NHD, num_groups)


def _forward_rectangle(q_NHD, k_PKD, v_PKD, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Query heads of one key head become more queries, so that no key is copied."""
    num_keys = k_PKD.shape[1]
    k, v = (x.transpose(0, 1)[None] for x in (k_PKD, v_PKD))
    out_1KLD, lse_1KL = _forward(_fold(q_NHD, num_keys)[None], k, v, 0.0, False, scale=scale)
    out_KGND = out_1KLD[0].unflatten(1, (-1, len(q_NHD)))
    return out_KGND.permute(2, 0, 1, 3).flatten(1, 2), lse_1KL[0].reshape(q_NHD.shape[1], -1)


def _backward_rectangle(dout_NHD, q_NHD, k_PKD, v_PKD, out_NHD, lse_HN, scale: float):
    num_keys = k_PKD.shape[1]
    chunks = _num_chunks(num_keys, q_NHD.shape[0] * q_NHD.shape[1] // num_keys)
    dout, q, out = (_chunk(_fold(x, num_keys), chunks) for x in (dout_NHD, q_NHD, out_NHD))
    lse_CKM = _chunk(lse_HN.reshape(num_keys, -1, 1), chunks, float("inf"))[..., 0]
    k, v = (x.transpose(0, 1)[None].expand(chunks, -1, -1, -1) for x in (k_PKD, v_PKD))
    dq_CKMD, dk_CKPD, dv_CKPD = _call_backward(dout, q, k, v, out, lse_CKM, False, scale)
    rows = q_NHD.shape[0] * q_NHD.shape[1] // num_keys
    dq_KLD = dq_CKMD.transpose(0, 1).flatten(1, 2)[:, :rows]
    dq_NHD = dq_KLD.unflatten(1, (-1, len(q_NHD))).permute(2, 0, 1, 3).flatten(1, 2)
    return dq_NHD, dk_CKPD.sum(0).transpose(0, 1), dv_CKPD.sum(0).transpose(0, 1)


def _call_backward(dout, q, k, v, out, lse, causal: bool, scale: float):
    """All (batch, heads, tokens, D), `lse` (batch, heads, tokens). Gradients in at least float32."""
    work = torch.promote_types(q.dtype, torch.float32)
    kernel = q.dtype if min(q.shape[2], k.shape[2]) >= LONG else work
    # The kernel reads the log-sum-exp in the strides in which its own forward pass writes it.
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    gradients = _backward(*(x.to(kernel) for x in (dout, q, k, v, out)), lse, 0.0, causal, scale=scale)
    return tuple(x.to(work) for x in gradients)


def _num_chunks(num_heads: int, rows: int) -> int:
    """The backward kernel's threads share heads and batch entries: chunks of rows that they can share evenly."""
    threads = torch.get_num_threads()
    fair = [chunks for chunks in range(1, threads + 1) if num_heads * chunks % threads == 0]
    return fair[0] if rows >= fair[0] * LONG // 2 else 1


def _fold(x_NHD: torch.Tensor, num_keys: int) -> torch.Tensor:
    """(N, H, D) -> (K, G * N, D)."""
    return x_NHD.unflatten(1, (num_keys, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _chunk(x_KLD: torch.Tensor, chunks: int, filler: float = 0.0) -> torch.Tensor:
    """(K, L, D) -> (C, K, M, D), filled up to a multiple of C."""
    missing = -x_KLD.shape[1] % chunks
    if missing:
        x_KLD = F.pad(x_KLD, (0, 0, 0, missing), value=filler)
    return x_KLD.unflatten(1, (chunks, -1)).transpose(0, 1)


def _repeat(x_NKD: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(N, K, D) -> (N, H, D)."""
    return x_NKD if num_groups == 1 else x_NKD.repeat_interleave(num_groups, dim=1)


def _sum_groups(dx_NHD: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(N, H, D) -> (N, K, D): the gradient of `_repeat`."""
    return dx_NHD if num_groups == 1 else dx_NHD.unflatten(1, (-1, num_groups)).sum(2)
