"""The KV cache: one row of slots per request, and for every slot which token of which node it holds.

Shape suffixes: R rows, K key heads, S slots of a row, D head width, N tokens of a pass.
"""

from __future__ import annotations

import numpy as np
import torch

EMPTY = np.iinfo(np.int32).max
"""The index of a slot that holds nothing: above every limit, so nobody sees it."""


class KVCache:
    """Rows and slots grow by doubling, so memory follows what requests need, not what they could need."""

    def __init__(
        self, num_layers: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (0, num_kv_heads, 256, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self.node_RS = torch.zeros((0, 256), dtype=torch.long, device=device)
        self.index_RS = torch.full((0, 256), EMPTY, dtype=torch.int32, device=device)
        self.used: list[int] = []
        """Slots in use, per row."""

    def reserve(self, row: int, count: int) -> range:
        """The next `count` slots of `row`, from now on in use."""
        num_rows, num_slots = self.node_RS.shape
        start = self.used[row] if row < len(self.used) else 0
        while num_rows <= row:
            num_rows = max(1, 2 * num_rows)
        while num_slots < start + count:
            num_slots *= 2
        if (num_rows, num_slots) != tuple(self.node_RS.shape):
            self._grow(num_rows, num_slots)
        self.used[row] = start + count
        return range(start, start + count)

    def release(self, row: int) -> None:
        """Forget what the row holds."""
        if row >= len(self.used):
            return
        self.index_RS[row] = EMPTY
        for values_RKSD in self.values:
            values_RKSD[row, :, : self.used[row]] = 0  # a stale infinity would spoil 0 * value
        self.used[row] = 0

    def describe(
        self, rows_N: torch.Tensor, slots_N: torch.Tensor, node_N: torch.Tensor, index_N: torch.Tensor
    ) -> None:
        """Say which token each slot holds."""
        self.node_RS[rows_N, slots_N] = node_N
        self.index_RS[rows_N, slots_N] = index_N.int()

    def write(
        self, layer: int, rows_N: torch.Tensor, slots_N: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor
    ) -> None:
        self.keys[layer][rows_N, :, slots_N] = k_NKD
        self.values[layer][rows_N, :, slots_N] = v_NKD

    def _grow(self, num_rows: int, num_slots: int) -> None:
        # Layer by layer, so that only one layer is in memory twice.
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = old.new_zeros((num_rows, old.shape[1], num_slots, old.shape[3]))
                new[: old.shape[0], :, : old.shape[2]] = old
                tensors[layer] = new
        node_RS = self.node_RS.new_zeros((num_rows, num_slots))
        index_RS = self.index_RS.new_full((num_rows, num_slots), EMPTY)
        for new, old in ((node_RS, self.node_RS), (index_RS, self.index_RS)):
            new[: old.shape[0], : old.shape[1]] = old
        self.node_RS, self.index_RS = node_RS, index_RS
        self.used += [0] * (num_rows - len(self.used))
