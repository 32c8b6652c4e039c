"""Carrying out a plan on a varlen kernel, forward and backward.

Backward runs every call with the *joined* output and log-sum-exp, which makes each call's probabilities the true ones;
the gradients of the calls then add up. Autograd through the join would be wrong, since flash kernels ignore the
gradient of the log-sum-exp.

Shape suffixes: T tokens, Q queries of a call, S keys of a call, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from typing import Protocol

import torch

from mvtrain.attention.merge import merge_
from mvtrain.attention.plan import Call, Plan
from mvtrain.attention.tensor_kind import TensorKind


class Kernel(Protocol):
    """What a module of kernels offers. Sequences of a call may be without queries or without keys."""

    NAME: str

    def unsupported(self, tensors: TensorKind) -> str | None: ...

    def forward(self, q_QHD, k_SKD, v_SKD, call: Call, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns out_QHD and its log-sum-exp, (H, Q), -inf for a query without keys."""

    def backward(self, dout_QHD, q_QHD, k_SKD, v_SKD, out_QHD, lse_HQ, call: Call, scale: float):
        """Returns dq_QHD, dk_SKD, dv_SKD, zero where a query has no key or a key no query."""


def forward(
    q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, plan: Plan, kernel: Kernel, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns out_THD in the dtype of `q_THD`, and the log-sum-exp, (H, T), in at least float32."""
    causal, *others = plan.calls
    out_THD, lse_HT = kernel.forward(q_THD, _keys(k_TKD, causal), _keys(v_TKD, causal), causal, scale)
    if others:
        out_THD = out_THD.to(lse_HT.dtype)
    for call in others:
        rows = slice(*call.query_rows)
        part_QHD, part_HQ = kernel.forward(q_THD[rows], _keys(k_TKD, call), _keys(v_TKD, call), call, scale)
        merge_(out_THD[rows], lse_HT[:, rows], part_QHD, part_HQ)
    return out_THD.to(q_THD.dtype), lse_HT


def backward(
    dout_THD: torch.Tensor,
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    out_THD: torch.Tensor,
    lse_HT: torch.Tensor,
    plan: Plan,
    kernel: Kernel,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns dq, dk, dv in the dtypes of q, k, v; summed over calls in at least float32."""
    work = torch.promote_types(q_THD.dtype, torch.float32)
    sums = None
    for call in plan.calls:
        rows = slice(*call.query_rows)
        dq_QHD, dk_SKD, dv_SKD = kernel.backward(
            dout_THD[rows], q_THD[rows], _keys(k_TKD, call), _keys(v_TKD, call), out_THD[rows], lse_HT[:, rows],
            call, scale,
        )  # fmt: skip
        if sums is None:
            sums = [dq_QHD.to(work), _spread(dk_SKD, call, k_TKD, work), _spread(dv_SKD, call, v_TKD, work)]
        else:
            dq_THD, dk_TKD, dv_TKD = sums
            dq_THD[rows] += dq_QHD
            dk_TKD[slice(*call.key_rows)] += dk_SKD
            dv_TKD[slice(*call.key_rows)] += dv_SKD
    return tuple(total.to(x.dtype) for total, x in zip(sums, (q_THD, k_TKD, v_TKD), strict=True))


def _keys(x_TKD: torch.Tensor, call: Call) -> torch.Tensor:
    if call.key_index_S is None:
        return x_TKD[slice(*call.key_rows)]
    return x_TKD.index_select(0, call.key_index_S)


def _spread(dx_SKD: torch.Tensor, call: Call, x_TKD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The gradient of `_keys`: (T, K, D)."""
    if call.key_index_S is None:
        return dx_SKD.to(dtype)
    dx_TKD = torch.zeros_like(x_TKD, dtype=dtype)
    if dx_TKD.is_cuda and torch.are_deterministic_algorithms_enabled():
        return dx_TKD.index_put_((call.key_index_S,), dx_SKD.to(dtype), accumulate=True)
    return dx_TKD.index_add_(0, call.key_index_S, dx_SKD.to(dtype))
