"""Batches made one step ahead, in a thread, so that packing, layouts and attention plans cost the step nothing."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch

from mvtrain.attention import cost, varlen
from mvtrain.attention.sequence_parallel import heads_of_rank
from mvtrain.data.collate import Batch
from mvtrain.data.kinds import KINDS
from mvtrain.layout import Layout
from mvtrain.train.batching import Batching
from mvtrain.train.plan import Plan


@dataclass(frozen=True, eq=False)
class Inputs:
    """What one rank's model reads in one micro-step: of its share of the tokens."""

    input_ids: torch.Tensor
    """(1, T) long, as are the other tensors."""
    position_ids: torch.Tensor
    targets: torch.Tensor
    kinds: torch.Tensor
    layout: Layout
    """Of all tokens."""
    num_targets: tuple[int, ...]
    """By kind, of this rank's share."""
    num_path_tokens: int
    """Text inside of paths, of this rank's share."""

    @classmethod
    def of(cls, batch: Batch, place: int = 0, size: int = 1) -> Inputs:
        """The share of the rank at a place of a group of `size`, which must divide the batch's tokens."""
        length = batch.num_tokens // size
        mine = slice(place * length, (place + 1) * length)
        targets, kinds = batch.targets[:, mine], batch.target_kinds[:, mine]
        counts = torch.bincount(kinds[targets >= 0], minlength=len(KINDS))
        return cls(
            input_ids=batch.input_ids[:, mine].contiguous(),
            position_ids=batch.position_ids[:, mine].contiguous(),
            targets=targets.contiguous(),
            kinds=kinds.contiguous(),
            layout=batch.layout,
            num_targets=tuple(counts.tolist()),
            num_path_tokens=int((batch.kinds[:, mine] == KINDS.index("path")).sum()),
        )

    def to(self, device: torch.device) -> Inputs:
        """With the tensors on the device; the layout stays, it is made of plain numbers."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Inputs:
        """With the tensors in page-locked memory."""
        return self._with(torch.Tensor.pin_memory)

    def for_model(self) -> dict[str, Any]:
        """Arguments of `SumOfTokenLosses`."""
        return {name: getattr(self, name) for name in ("input_ids", "position_ids", "targets", "kinds", "layout")}

    def _with(self, change: Any) -> Inputs:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Inputs(**{name: change(v) if isinstance(v, torch.Tensor) else v for name, v in values.items()})


class BatchesAhead:
    """The inputs of a rank, step by step. Asking for a step starts work on the next.

    Args:
        heads: shape of the attention that a rank computes.
        device: where the batches will be used.
    """

    def __init__(self, plan: Plan, rank: int, heads: cost.Heads, device: torch.device) -> None:
        self.plan, self.rank, self.heads, self.device = plan, rank, heads, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._started: dict[int, Future[list[Inputs]]] = {}

    def of_step(self, number: int) -> list[Inputs]:
        """One per micro-step, on the host. What went wrong while making them is raised here."""
        batches = self._started.pop(number, None) or self._thread.submit(self._make, number)
        if number + 1 < len(self.plan.steps):
            self._started = {number + 1: self._thread.submit(self._make, number + 1)}
        return batches.result()

    def close(self) -> None:
        """Stop the thread. May be called at any time."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, number: int) -> list[Inputs]:
        size = self.plan.batching.sequence_parallel_size
        batches = self.plan.batches(self.plan.steps[number], self.rank)
        for batch in batches:
            varlen.plan_for(batch.layout.encoded, self.heads, self.device)
        inputs = [Inputs.of(batch, self.rank % size, size) for batch in batches]
        return [one.pin_memory() for one in inputs] if self.device.type == "cuda" else inputs


def heads_of(config: Any, dtype: torch.dtype, batching: Batching | None = None) -> cost.Heads:
    """The attention shape of a transformers configuration, of one rank's share of the heads."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = batching.sequence_parallel_size if batching else 1
    return cost.Heads(*heads_of_rank(config.num_attention_heads, num_keys, size), width, dtype.itemsize)
