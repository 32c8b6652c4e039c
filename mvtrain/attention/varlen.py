"""Multiverse Attention through varlen flash kernels, as one PyTorch operator, `mvtrain::attention`.

To torch.compile, to activation checkpointing and to DeepSpeed a layer's attention is one operator with two outputs,
whatever number of kernels its plan launches. Everything it depends on is an argument; the layout comes as the tensor
`Layout.encoded`, and geometry and plan are looked up by its content, so that all layers of a batch share one.

Shape suffixes: T tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from mvtrain.attention import cost, execute, kernels
from mvtrain.attention.plan import Geometry, Plan
from mvtrain.attention.tensor_kind import TensorKind, check_length
from mvtrain.layout import Layout

AUTOMATIC = -1
"""As `levels`: chosen by `mvtrain.attention.cost`."""


def unsupported(tensors: TensorKind) -> str | None:
    """Why no kernel can take such tensors, or None."""
    kernel, reason = kernels.choose(tensors)
    return reason if kernel is None else None


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    layout: Layout,
    scale: float,
    kernel: str | None = None,
    levels: int = AUTOMATIC,
) -> torch.Tensor:
    """See `mvtrain.attention.attend`.

    Args:
        kernel: a name of `mvtrain.attention.kernels.KERNELS`; by default the first that works.
        levels: rounds of rectangles that the plan takes out of its causal call; see `mvtrain.attention.plan`.
    """
    kernel = kernel or kernels.name_for(*TensorKind.of(q_THD, k_TKD))
    return torch.ops.mvtrain.attention(q_THD, k_TKD, v_TKD, layout.encoded, scale, kernel, levels)[0]


def plan_for(encoded: torch.Tensor, heads: cost.Heads, device: torch.device, levels: int = AUTOMATIC) -> Plan:
    """The plan of an encoded layout for a layer's shape, with its tensors on `device`; built once."""
    geometry = geometry_of(encoded)
    if levels == AUTOMATIC:
        levels = _choice(geometry, heads, cost.CUDA if device.type == "cuda" else cost.CPU)
    return geometry.plan(min(levels, geometry.max_levels)).on(device)


def geometry_of(encoded: torch.Tensor) -> Geometry:
    return _geometry(encoded.numpy().tobytes())


_KEPT = 128  # this step's and the next step's micro-batches; above, plans would be made twice


@lru_cache(maxsize=_KEPT)
def _geometry(content: bytes) -> Geometry:
    return Geometry(Layout.decode(torch.frombuffer(bytearray(content), dtype=torch.int64)))


_choice = lru_cache(maxsize=_KEPT)(cost.choose_levels)  # holds geometries, as the cache above does


@torch.library.custom_op("mvtrain::attention", mutates_args=())
def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, encoded: torch.Tensor, scale: float, kernel: str, levels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    check_length(q, geometry_of(encoded).num_tokens)
    q, k, v = (x.contiguous() for x in (q, k, v))
    plan = plan_for(encoded, cost.Heads.of(q, k), q.device, levels)
    return execute.forward(q, k, v, plan, kernels.load(kernel), scale)


@_attention.register_fake
def _(q, k, v, encoded, scale, kernel, levels):
    work = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=work)


@torch.library.custom_op("mvtrain::attention_backward", mutates_args=())
def _attention_backward(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    encoded: torch.Tensor,
    scale: float,
    kernel: str,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dout, q, k, v = (x.contiguous() for x in (dout, q, k, v))
    plan = plan_for(encoded, cost.Heads.of(q, k), q.device, levels)
    return execute.backward(dout, q, k, v, out, lse, plan, kernels.load(kernel), scale)


@_attention_backward.register_fake
def _(dout, q, k, v, out, lse, encoded, scale, kernel, levels):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.scale, ctx.kernel, ctx.levels = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, dout_THD, _):
    q, k, v, encoded, out, lse = ctx.saved_tensors
    gradients = torch.ops.mvtrain.attention_backward(
        dout_THD, q, k, v, out, lse, encoded, ctx.scale, ctx.kernel, ctx.levels
    )
    return (*gradients, None, None, None, None)


_attention.register_autograd(_differentiate, setup_context=_keep)
