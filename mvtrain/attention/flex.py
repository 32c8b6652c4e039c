"""Multiverse Attention through FlexAttention on CUDA: one compiled kernel that reads the mask from a table of nodes.

For GPUs without flash kernels, and as a check on the others. Which tiles are computed follows from the nodes' key
ranges; no T x T mask is built.

Shape suffixes: T tokens, N nodes, B tiles of tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache, lru_cache

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from mvtrain.attention.tensor_kind import TensorKind, check_length
from mvtrain.layout import Layout, Node

TILE = 128


def unsupported(tensors: TensorKind) -> str | None:
    """Why FlexAttention cannot take these tensors, or None."""
    if tensors.device.type != "cuda":
        return "FlexAttention has a backward pass on CUDA only"
    if tensors.dtype == torch.float64:
        return "FlexAttention takes float32, bfloat16 and float16, not torch.float64"
    if tensors.width < 16:
        return f"FlexAttention takes head widths from 16 on, not {tensors.width}"
    return None


def attend(q_THD: torch.Tensor, k_TKD: torch.Tensor, v_TKD: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """See `mvtrain.attention.attend`."""
    check_length(q_THD, layout.num_tokens)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TKD, v_TKD))
    mask = block_mask(layout, q_THD.device)
    return _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)


@lru_cache(maxsize=4)
def block_mask(layout: Layout, device: torch.device) -> BlockMask:
    """The layout as FlexAttention's mask, built once per batch."""
    visible_BB, whole_BB = _tiles(layout)
    node_T, table_NN = _node_table(layout)
    node_T, table_NN = node_T.to(device), table_NN.to(device)

    def sees(b, h, q, k):
        return (q >= k) & table_NN[node_T[q], node_T[k]]

    parts = (visible_BB & ~whole_BB, whole_BB)
    counts_and_indices = [x.to(device) for part in parts for x in _kept_tiles(part)]
    length = layout.num_tokens
    return BlockMask.from_kv_blocks(*counts_and_indices, BLOCK_SIZE=TILE, mask_mod=sees, seq_lengths=(length, length))


@cache
def _compiled():
    # Every batch has a length of its own.
    return torch.compile(flex_attention, dynamic=True)


def _tiles(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """BoolTensors (B, B): tiles with a visible pair, and tiles in which every pair is visible."""
    num_tiles = -(-layout.num_tokens // TILE)
    pairs_BB = torch.zeros(num_tiles, num_tiles, dtype=torch.int32)
    for node in layout.nodes:
        rows, in_rows = _overlap(node.start, node.end)
        for start, end in node.sees:
            columns, in_columns = _overlap(start, end)
            pairs_BB[rows, columns] += in_rows[:, None] * in_columns
        _add_own(pairs_BB, node, rows, in_rows)
    return pairs_BB > 0, pairs_BB == TILE * TILE


def _add_own(pairs_BB: torch.Tensor, node: Node, rows: slice, in_rows: torch.Tensor) -> None:
    """A node's own triangle; a tile on its diagonal counts one pair, which is all that matters: it is never whole."""
    pairs_BB[rows, rows] += (in_rows[:, None] * in_rows).tril(-1) + torch.eye(len(in_rows), dtype=torch.int32)


def _overlap(start: int, end: int) -> tuple[slice, torch.Tensor]:
    """The tiles that [start, end) touches, and how many of its tokens stand in each."""
    first, last = start // TILE, -(-end // TILE)
    edges = torch.arange(first, last + 1, dtype=torch.int32) * TILE
    return slice(first, last), edges.clamp(start, end).diff()


def _kept_tiles(kept_BB: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per row of tiles: how many columns are kept, and which, those first; both with FlexAttention's (1, 1, ...)."""
    order = kept_BB.int().argsort(dim=1, descending=True, stable=True)
    return kept_BB.sum(1).int()[None, None], order.int()[None, None]


def _node_table(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's node, int32 (T,), and which node sees tokens of which, BoolTensor (N, N)."""
    starts = [node.start for node in layout.nodes]
    table_NN = torch.eye(len(starts), dtype=torch.bool)
    for i, node in enumerate(layout.nodes):
        for start, end in node.sees:
            table_NN[i, bisect_left(starts, start) : bisect_left(starts, end)] = True
    lengths = torch.tensor([node.end - node.start for node in layout.nodes])
    return torch.repeat_interleave(torch.arange(len(starts), dtype=torch.int32), lengths), table_NN
