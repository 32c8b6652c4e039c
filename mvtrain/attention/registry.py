"""`attend`: one signature for every implementation of Multiverse Attention.

Shape suffixes: T tokens, H query heads, K key heads (K divides H), D head width.
"""

from __future__ import annotations

import importlib
import logging
from functools import cache

import torch

from mvtrain.layout import Layout

logger = logging.getLogger(__name__)

BACKENDS = {
    "varlen": "mvtrain.attention.varlen",
    "reference": "mvtrain.attention.reference",
}
"""Backend -> module. A module is imported when its backend is first used; it has `attend` and `unsupported`."""

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
        backend: "varlen", "reference", or "auto" for the first that takes these tensors.
        scale: factor on the scores, 1 / sqrt(D) by default.

    Returns:
        (T, H, D), dtype of `q_THD`.

    Raises:
        ValueError: shapes do not fit, or no backend takes these tensors; the message says what would work.
    """
    _check_shapes(q_THD, k_TKD, v_TKD, layout)
    name = _choose(q_THD) if backend == "auto" else backend
    module = _module(name)
    problem = module.unsupported(q_THD)
    if problem:
        raise ValueError(f"attention backend {name!r} cannot run here: {problem}")
    return module.attend(q_THD, k_TKD, v_TKD, layout, scale or q_THD.shape[-1] ** -0.5)


def _choose(q_THD: torch.Tensor) -> str:
    problem = _module("varlen").unsupported(q_THD)
    if problem is None:
        return "varlen"
    if q_THD.shape[0] > REFERENCE_LIMIT:
        raise ValueError(
            f"no attention backend for {q_THD.shape[0]} tokens of {q_THD.dtype} on {q_THD.device}: varlen: {problem}; "
            f"the dense reference is for up to {REFERENCE_LIMIT} tokens (ask for it with backend='reference')"
        )
    _warn_once(f"attention: the dense reference is used, since varlen cannot run here: {problem}")
    return "reference"


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


@cache
def _module(name: str):
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}; choose one of auto, {', '.join(BACKENDS)}")
    return importlib.import_module(BACKENDS[name])


def _check_shapes(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, layout: Layout) -> None:
    fits = (
        q_THD.dim() == k_TKD.dim() == v_TKD.dim() == 3
        and q_THD.shape[0] == k_TKD.shape[0] == v_TKD.shape[0] == layout.num_tokens
        and q_THD.shape[2] == k_TKD.shape[2] == v_TKD.shape[2]
        and k_TKD.shape[1] == v_TKD.shape[1]
        and q_THD.shape[1] % k_TKD.shape[1] == 0
    )
    if not fits:
        raise ValueError(
            f"expected q (T, H, D), k and v (T, K, D) with T = {layout.num_tokens} and K a divisor of H; got "
            f"{tuple(q_THD.shape)}, {tuple(k_TKD.shape)}, {tuple(v_TKD.shape)}"
        )
