"""Which kernel carries plans out: the first that a probe call finds right on this device, for these tensors.

Nothing is decided by version numbers. A probe runs forward and backward on a small layout with nested blocks, empty
queries and empty keys, and compares with the dense reference.

Shape suffixes: T tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import importlib
import logging
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

from mvtrain.attention import execute, reference
from mvtrain.attention.plan import Geometry
from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import Layout, TagIds

logger = logging.getLogger(__name__)

KERNELS = {
    "cuda": {
        "flash_attn_3": "mvtrain.attention.kernels_flash_attn_3",
        "flash_attn": "mvtrain.attention.kernels_flash_attn",
        "torch": "mvtrain.attention.kernels_torch",
    },
    "cpu": {"torch_cpu": "mvtrain.attention.kernels_cpu"},
}
"""Device type -> kernel -> module, the first choice first. A module is imported when it is probed."""

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest relative error, in the 2-norm, that a probe passes."""


@torch.compiler.assume_constant_result
def name_for(device: torch.device, dtype: torch.dtype, num_groups: int, width: int) -> str:
    """The kernel to use for such tensors; the arguments are those of a `TensorKind`.

    Raises:
        ValueError: none can be used; says why.
    """
    name, reason = choose(TensorKind(device, dtype, num_groups, width))
    if name is None:
        raise ValueError(reason)
    return name


@cache
def choose(tensors: TensorKind) -> tuple[str | None, str]:
    """The first kernel that works, and why it was taken; or None, and why none can be used."""
    if tensors.device.type not in KERNELS:
        return None, f"no flash kernel for device {tensors.device.type!r}; use cpu or cuda"
    reasons = []
    for name in KERNELS[tensors.device.type]:
        problem = probe(name, tensors)
        if problem is None:
            why = f"since others do not work: {'; '.join(reasons)}" if reasons else "the first choice"
            logger.info("attention kernel %s for %s: %s", name, tensors, why)
            return name, why
        reasons.append(f"{name}: {problem}")
    return None, "; ".join(reasons)


def load(name: str) -> execute.Kernel:
    """The module of a kernel."""
    modules = {kernel: module for group in KERNELS.values() for kernel, module in group.items()}
    if name not in modules:
        raise ValueError(f"unknown attention kernel {name!r}; choose one of {', '.join(modules)}")
    return importlib.import_module(modules[name])


def probe(name: str, tensors: TensorKind) -> str | None:
    """Why a kernel cannot be used for such tensors, found by using it; None if it can be."""
    # The first call of a model may come from inside a checkpointed or traced layer. Saved-tensor hooks, dispatch modes
    # and autocast belong to a thread, so in another one the probe leaves no mark on them.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_probe, name, tensors).result()


def _probe(name: str, tensors: TensorKind) -> str | None:
    layout = _probe_layout()
    random = torch.Generator().manual_seed(0)
    heads = (2 * tensors.num_groups, 2, 2, 2 * tensors.num_groups)
    q, k, v, dout = (
        torch.randn(layout.num_tokens, num, tensors.width, generator=random).to(tensors.device, tensors.dtype)
        for num in heads
    )
    try:
        kernel = load(name)
        problem = kernel.unsupported(tensors)
        with torch.cuda.device(tensors.device if tensors.device.type == "cuda" else -1):
            return problem or _compare(kernel, q, k, v, dout, layout)
    except ImportError as error:
        return f"not installed ({error})"
    except Exception as error:  # compilers and drivers raise what they like; the next kernel may work
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _compare(kernel: execute.Kernel, q, k, v, dout, layout: Layout) -> str | None:
    scale = q.shape[-1] ** -0.5
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    out = reference.attend(*exact, layout, scale)
    expected = (out, *torch.autograd.grad(out, exact, dout.double()))
    geometry = Geometry(layout)
    for levels in (0, geometry.max_levels):
        plan = geometry.plan(levels).on(q.device)
        out, lse = execute.forward(q, k, v, plan, kernel, scale)
        found = (out, *execute.backward(dout, q, k, v, out, lse, plan, kernel, scale))
        for part, a, b in zip(("output", "dq", "dk", "dv"), found, expected, strict=True):
            miss = ((a.double() - b).norm() / b.norm()).item()
            if not miss < _TOLERANCE[q.dtype]:
                return f"its {part} is wrong by {miss:.1e} with {levels} levels"
    return None


@cache
def _probe_layout() -> Layout:
    """Two documents: nested blocks, paths of one token up to more than a tile, and text that stands alone."""
    tags = TagIds(*range(12))
    text = 12

    def block(*paths: list[int]) -> list[int]:
        ids = [tags.parallel, tags.goal, tags.end_goal]
        for path in paths:
            ids += [tags.path, *path, tags.end_path]
        return [*ids, tags.conclusion, tags.end_conclusion, tags.end_parallel]

    inner = block([text] * 3, [text] * 20, [])
    first = [text] * 40 + block([text] * 150, [text, *inner, text], [text] * 5) + [text] * 30
    return Layout.pack([Layout.from_ids([*first, *first], tags), Layout.from_ids([text] * 70, tags)])
