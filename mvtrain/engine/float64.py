"""Passes that are compared in float64 have to be float64 throughout.

transformers' RMSNorm rounds its input to float32 whatever the model's dtype. Two passes that differ by 1e-14 may fall
on different sides of that rounding, and from there on they differ by 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def float64_norms(model: Any) -> Iterator[None]:
    """Within this context the RMSNorms of a model compute in the dtype of what they are given."""
    norms = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    for norm in norms:
        norm.forward = partial(_rms_norm, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward  # the class's own again


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
