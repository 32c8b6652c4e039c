"""`attend`: one signature for every implementation of Multiverse Attention.

Shape suffixes: T tokens, H query heads, K key heads (K divides H), D head width.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache
from types import ModuleType

import torch

from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import Layout

logger = logging.getLogger(__name__)

BACKENDS = {
    "varlen": "mvtrain.attention.varlen",
    "flex": "mvtrain.attention.flex",
    "reference": "mvtrain.attention.reference",
}
"""Backend -> module, in the order in which "auto" tries them. A module is imported when its backend is first tried; it
has `attend` and `unsupported`."""

REFERENCE_LIMIT = 4096
"""Up to this many tokens `auto` may fall back on the reference, whose mask grows with the square of the tokens."""


def attend(
    q_THD: torch.Tensor,
    k_TKD: torch.Tensor,
    v_TKD: torch.Tensor,
    layout: Layout,
    backend: str = "auto",
    scale: float | None = None,
) -> torch.Tensor:
    """Multiverse Attention over one (packed) sequence. Differentiable in q, k and v.

    Args:
        q_THD: (T, H, D) queries, float64, float32 or bfloat16 on the CPU; bfloat16 or float16 on CUDA.
        k_TKD: (T, K, D) keys; K divides H, query head h reads key head h // (H / K).
        v_TKD: (T, K, D) values.
        layout: who sees whom; `layout.num_tokens` is T.
        backend: "varlen", "flex", "reference", or "auto" for the first that takes these tensors.
        scale: factor on the scores, 1 / sqrt(D) by default.

    Returns:
        (T, H, D), dtype of `q_THD`.

    Raises:
        ValueError: shapes do not fit each other or the layout, or no backend takes these tensors; the message says
            what would work.
    """
    _check_shapes(q_THD, k_TKD, v_TKD)
    tensors = TensorKind.of(q_THD, k_TKD)
    name = _select(backend, *tensors)
    if name == "reference" and backend == "auto" and q_THD.shape[0] > REFERENCE_LIMIT:
        raise ValueError(_too_long_for_reference(q_THD.shape[0], tensors))
    scale = q_THD.shape[-1] ** -0.5 if scale is None else scale
    if name == "varlen":
        from mvtrain.attention import varlen as module
    elif name == "flex":
        from mvtrain.attention import flex as module
    else:
        from mvtrain.attention import reference as module
    return module.attend(q_THD, k_TKD, v_TKD, layout, scale)


@torch.compiler.assume_constant_result
def _select(backend: str, device: torch.device, dtype: torch.dtype, num_groups: int, width: int) -> str:
    """The backend to use. It depends on nothing that changes between batches: torch.compile need not look into it."""
    return _selected(backend, TensorKind(device, dtype, num_groups, width))


@cache
def _selected(backend: str, tensors: TensorKind) -> str:
    if backend != "auto":
        problem = _module(backend).unsupported(tensors)
        if problem:
            raise ValueError(f"attention backend {backend!r} cannot run here: {problem}")
        return backend
    problems = _problems(tensors)
    name = next(name for name, problem in problems.items() if problem is None)
    if len(problems) > 1:
        logger.warning("attention backend %s, since others cannot run here: %s", name, _listed(problems))
    return name


def _problems(tensors: TensorKind) -> dict[str, str | None]:
    """Backend -> why it cannot run, up to and with the first that can: the reference takes everything."""
    problems: dict[str, str | None] = {}
    for name in BACKENDS:
        problems[name] = _module(name).unsupported(tensors)
        if problems[name] is None:
            return problems
    raise AssertionError("the reference takes everything")


def _listed(problems: dict[str, str | None]) -> str:
    return "; ".join(f"{name}: {problem}" for name, problem in problems.items() if problem)


def _too_long_for_reference(num_tokens: int, tensors: TensorKind) -> str:
    return (
        f"no attention backend for {num_tokens} tokens of {tensors.dtype} on {tensors.device}: "
        f"{_listed(_problems(tensors))}; the dense reference is for up to {REFERENCE_LIMIT} tokens "
        "(ask for it with backend='reference')"
    )


def _module(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    return importlib.import_module(BACKENDS[name])


def _check_shapes(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor) -> None:
    fits = (
        q_THD.dim() == k_TKD.dim() == v_TKD.dim() == 3
        and q_THD.shape[0] == k_TKD.shape[0]
        and k_TKD.shape == v_TKD.shape
        and q_THD.shape[2] == k_TKD.shape[2]
        and q_THD.shape[1] % k_TKD.shape[1] == 0
    )
    if not fits:
        raise ValueError(
            "expected q (T, H, D), k and v (T, K, D) with K a divisor of H; got "
            f"{tuple(q_THD.shape)}, {tuple(k_TKD.shape)}, {tuple(v_TKD.shape)}"
        )
    kinds = [f"{x.dtype} on {x.device}" for x in (q_THD, k_TKD, v_TKD)]
    if len(set(kinds)) != 1:
        raise ValueError(f"q, k and v must have one dtype and device; got {', '.join(kinds)}")
