"""Batches made one step ahead, in a thread, so that packing, layouts and attention plans cost the step nothing."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from mvtrain.attention import cost, varlen
from mvtrain.data.collate import Batch
from mvtrain.train.plan import Plan


class BatchesAhead:
    """The batches of a rank, step by step. Asking for a step starts work on the next.

    Args:
        heads: shape of the model's attention layers.
        device: where the batches will be used.
    """

    def __init__(self, plan: Plan, rank: int, heads: cost.Heads, device: torch.device) -> None:
        self.plan, self.rank, self.heads, self.device = plan, rank, heads, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._started: dict[int, Future[list[Batch]]] = {}

    def of_step(self, number: int) -> list[Batch]:
        """One batch per micro-step, on the host. What went wrong while making them is raised here."""
        batches = self._started.pop(number, None) or self._thread.submit(self._make, number)
        if number + 1 < len(self.plan.steps):
            self._started = {number + 1: self._thread.submit(self._make, number + 1)}
        return batches.result()

    def close(self) -> None:
        """Stop the thread. May be called at any time."""
        self._thread.shutdown(cancel_futures=True)

    def _make(self, number: int) -> list[Batch]:
        batches = self.plan.batches(self.plan.steps[number], self.rank)
        for batch in batches:
            varlen.plan_for(batch.layout.encoded, self.heads, self.device)
        return [batch.pin_memory() for batch in batches] if self.device.type == "cuda" else batches


def heads_of(config: Any, dtype: torch.dtype) -> cost.Heads:
    """The attention shape of a transformers configuration."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return cost.Heads(config.num_attention_heads, num_keys, width, dtype.itemsize)
