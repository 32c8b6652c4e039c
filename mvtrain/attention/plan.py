"""Layout -> one causal varlen call (the gather form).

Every node is a run of queries. Behind each other stand the keys it sees and then its own, so a causal mask aligned at
the bottom right, which is what flash attention's varlen kernels do, gives exactly the node's visibility.

Shape suffixes: N nodes, S gathered keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

import torch

from mvtrain.layout import Layout


@dataclass(frozen=True, eq=False)
class VarlenPlan:
    """Arguments of one causal varlen call. Tensors live on the host until `on` moves them."""

    cu_seqlens_q: torch.Tensor  # (N + 1,) int32
    cu_seqlens_k: torch.Tensor  # (N + 1,) int32
    max_seqlen_q: int
    max_seqlen_k: int
    key_index_S: torch.Tensor | None  # int64; None where keys are taken as they lie

    @cached_property
    def _moved(self) -> dict[torch.device, VarlenPlan]:
        return {}

    def on(self, device: torch.device) -> VarlenPlan:
        """The same plan with its tensors on `device`, moved once."""
        if self.cu_seqlens_q.device == device:
            return self
        if device not in self._moved:
            index = self.key_index_S
            self._moved[device] = VarlenPlan(
                self.cu_seqlens_q.to(device, non_blocking=True),
                self.cu_seqlens_k.to(device, non_blocking=True),
                self.max_seqlen_q,
                self.max_seqlen_k,
                None if index is None else index.to(device, non_blocking=True),
            )
        return self._moved[device]


_plans: WeakKeyDictionary[Layout, VarlenPlan] = WeakKeyDictionary()


def varlen_plan(layout: Layout) -> VarlenPlan:
    """The plan of a layout, built once: every layer and every pass of a batch uses the same."""
    if layout not in _plans:
        _plans[layout] = _build(layout)
    return _plans[layout]


def _build(layout: Layout) -> VarlenPlan:
    lengths_q = [node.end - node.start for node in layout.nodes]
    ranges = [(*node.sees, (node.start, node.end)) for node in layout.nodes]
    lengths_k = [sum(b - a for a, b in node_ranges) for node_ranges in ranges]
    gathers = any(node.sees for node in layout.nodes)
    index = torch.cat([torch.arange(a, b) for node_ranges in ranges for a, b in node_ranges]) if gathers else None
    return VarlenPlan(_cumulative(lengths_q), _cumulative(lengths_k), max(lengths_q), max(lengths_k), index)


def _cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
