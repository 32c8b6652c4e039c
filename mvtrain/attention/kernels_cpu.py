"""Multiverse Attention on the CPU through PyTorch's flash kernel, node by node.

The kernel knows no varlen and no causal mask aligned at the bottom right, so each node takes two calls: its queries
against the earlier keys it sees (no mask), and against its own keys (causal). The two parts are joined by their
log-sum-exp. Their backward passes run with the *joined* output and log-sum-exp, which makes each part's probabilities
the true ones; autograd through the join would be wrong, since the kernels ignore the gradient of the log-sum-exp.

Shape suffixes: T tokens, N a node's tokens, P earlier keys a node sees, H query heads, K key heads, G query heads per
key head (H = K * G), D head width.
"""

from __future__ import annotations

import torch

from mvtrain.layout import Layout, Node

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class NodeAttention(torch.autograd.Function):
    """(q_THD, k_TKD, v_TKD, layout, scale) -> out_THD."""

    @staticmethod
    def forward(ctx, q_THD, k_TKD, v_TKD, layout: Layout, scale: float) -> torch.Tensor:
        out_THD = torch.empty_like(q_THD)
        logsumexp = []
        for node in layout.nodes:
            out_NHD, lse_HN = _node_forward(node, q_THD, k_TKD, v_TKD, scale)
            out_THD[node.start : node.end] = out_NHD
            logsumexp.append(lse_HN)
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, out_THD, *logsumexp)
        ctx.layout, ctx.scale = layout, scale
        return out_THD

    @staticmethod
    def backward(ctx, dout_THD):
        q_THD, k_TKD, v_TKD, out_THD, *logsumexp = ctx.saved_tensors
        dq_THD = torch.empty_like(q_THD)
        # Many nodes add to the same keys: the sums are kept in at least float32.
        work = torch.promote_types(k_TKD.dtype, torch.float32)
        dk_TKD, dv_TKD = torch.zeros_like(k_TKD, dtype=work), torch.zeros_like(v_TKD, dtype=work)
        for node, lse_HN in zip(ctx.layout.nodes, logsumexp, strict=True):
            saved = (q_THD, k_TKD, v_TKD, out_THD, lse_HN, dout_THD)
            dq_THD[node.start : node.end] = _node_backward(node, saved, dk_TKD, dv_TKD, ctx.scale)
        return dq_THD, dk_TKD.to(k_TKD.dtype), dv_TKD.to(v_TKD.dtype), None, None


def _node_forward(node: Node, q_THD, k_TKD, v_TKD, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    own = slice(node.start, node.end)
    num_heads, num_groups = q_THD.shape[1], q_THD.shape[1] // k_TKD.shape[1]
    q_NHD = q_THD[own]
    out_HND, lse_HN = _call(
        _by_head(q_NHD), _repeat(k_TKD[own], num_groups), _repeat(v_TKD[own], num_groups), True, scale
    )
    if not node.sees:
        return out_HND.transpose(0, 1), lse_HN
    k_PKD, v_PKD = _gather(k_TKD, node), _gather(v_TKD, node)
    before_KgnD, before_Kgn = _call(_fold(q_NHD, num_groups), _by_head(k_PKD), _by_head(v_PKD), False, scale)
    before_HND, before_HN = before_KgnD.reshape(num_heads, -1, q_NHD.shape[2]), before_Kgn.reshape(num_heads, -1)
    joined_HN = torch.logaddexp(lse_HN, before_HN)
    joined_HND = _weigh(out_HND, lse_HN, joined_HN) + _weigh(before_HND, before_HN, joined_HN)
    return joined_HND.transpose(0, 1), joined_HN


def _node_backward(node: Node, saved, dk_TKD, dv_TKD, scale: float) -> torch.Tensor:
    """The node's dq, (N, H, D); adds to dk and dv in place."""
    q_THD, k_TKD, v_TKD, out_THD, lse_HN, dout_THD = saved
    own = slice(node.start, node.end)
    num_groups = q_THD.shape[1] // k_TKD.shape[1]
    q_NHD, out_NHD, dout_NHD = q_THD[own], out_THD[own], dout_THD[own]
    dq_HND, dk_HND, dv_HND = _call_backward(
        _by_head(dout_NHD), _by_head(q_NHD), _repeat(k_TKD[own], num_groups), _repeat(v_TKD[own], num_groups),
        _by_head(out_NHD), lse_HN, True, scale,
    )  # fmt: skip
    dk_TKD[own] += _sum_groups(dk_HND, num_groups)
    dv_TKD[own] += _sum_groups(dv_HND, num_groups)
    if not node.sees:
        return dq_HND.transpose(0, 1)
    k_PKD, v_PKD = _gather(k_TKD, node), _gather(v_TKD, node)
    before_KgnD, dk_KPD, dv_KPD = _call_backward(
        _fold(dout_NHD, num_groups), _fold(q_NHD, num_groups), _by_head(k_PKD), _by_head(v_PKD),
        _fold(out_NHD, num_groups), lse_HN.reshape(k_TKD.shape[1], -1), False, scale,
    )  # fmt: skip
    _scatter_add(dk_TKD, dk_KPD.transpose(0, 1), node)
    _scatter_add(dv_TKD, dv_KPD.transpose(0, 1), node)
    return (dq_HND + before_KgnD.reshape(dq_HND.shape)).transpose(0, 1)


def _call(q_HND, k_HND, v_HND, causal: bool, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _forward(q_HND[None], k_HND[None], v_HND[None], 0.0, causal, scale=scale)
    return out[0], lse[0]


def _call_backward(dout_HND, q_HND, k_HND, v_HND, out_HND, lse_HN, causal: bool, scale: float):
    # In bfloat16 this kernel is up to seven times slower than in float32 on short runs, which paths are.
    work = torch.promote_types(q_HND.dtype, torch.float32)
    tensors = (t[None].to(work) for t in (dout_HND, q_HND, k_HND, v_HND, out_HND))
    # The kernel reads the log-sum-exp in the strides in which its own forward pass writes it.
    lse = lse_HN.t().contiguous().t()[None]
    dq, dk, dv = _backward(*tensors, lse, 0.0, causal, scale=scale)
    return dq[0], dk[0], dv[0]


def _weigh(part_HND: torch.Tensor, part_HN: torch.Tensor, joined_HN: torch.Tensor) -> torch.Tensor:
    return part_HND * (part_HN - joined_HN).exp()[..., None]


def _by_head(x_NHD: torch.Tensor) -> torch.Tensor:
    return x_NHD.transpose(0, 1)


def _fold(x_NHD: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(N, H, D) -> (K, G * N, D): query heads of one key head become more queries, and no key is copied."""
    return x_NHD.unflatten(1, (-1, num_groups)).permute(1, 2, 0, 3).flatten(1, 2)


def _repeat(x_NKD: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(N, K, D) -> (H, N, D)."""
    return _by_head(x_NKD) if num_groups == 1 else x_NKD.repeat_interleave(num_groups, dim=1).transpose(0, 1)


def _sum_groups(dx_HND: torch.Tensor, num_groups: int) -> torch.Tensor:
    """(H, N, D) -> (N, K, D): the gradient of `_repeat`."""
    return dx_HND.unflatten(0, (-1, num_groups)).sum(1).transpose(0, 1)


def _gather(x_TKD: torch.Tensor, node: Node) -> torch.Tensor:
    """The rows a node sees before its own; a view where they are one range."""
    parts = [x_TKD[a:b] for a, b in node.sees]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scatter_add(dx_TKD: torch.Tensor, dx_PKD: torch.Tensor, node: Node) -> None:
    for (a, b), part in zip(node.sees, dx_PKD.split([b - a for a, b in node.sees]), strict=True):
        dx_TKD[a:b] += part
