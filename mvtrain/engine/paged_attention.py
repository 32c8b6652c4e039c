"""Attention of one pass over a paged cache, with a mask per query: plans, masks, and a plain version of the kernel.

All tokens of a pass are one sequence, those of a row beside each other. Neighbouring queries of a row form a tile; a
tile reads each slot that any of them sees once for all of them, and skips blocks of slots that none of them sees.

Shape suffixes: N tokens of a pass, R rows, B pages of the longest row, P pages, S slots of a row (B x page size),
H query heads, K key heads, D head width, M nodes of a request, W tiles, C blocks of slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK = 64
"""Slots that a program looks at in one turn of its loop."""
MAX_SPLITS = 16
"""Programs that may share the slots of one tile."""


@dataclass
class PagedWork:
    """What each query of a pass attends to, and how it is dealt out."""

    page_RB: torch.Tensor
    """int32, the pages of every row; past a row's end any page, none of whose slots is visible."""
    tile_3W: torch.Tensor
    """int32: row, first token and number of tokens of every tile. A tile without tokens does nothing."""
    visible_NS: torch.Tensor
    """uint8, 1 where the query may see the slot."""
    seen_WC: torch.Tensor
    """uint8, 1 where any query of the tile may see any slot of the block."""
    tile_size: int
    num_splits: int


def visibility(
    limits_NM: torch.Tensor,
    row_N: torch.Tensor,
    page_RB: torch.Tensor,
    node_PS: torch.Tensor,
    index_PS: torch.Tensor,
) -> torch.Tensor:
    """(N, S) uint8: a query sees a slot if and only if the slot's index is below its limit for the slot's node.

    Args:
        limits_NM: (N, M) int32. The last column is 0 and stands for nodes that no query of the pass knows.
        row_N: (N,) the row of every query, of `page_RB`.
        node_PS, index_PS: (P, page size) int32, what each slot of each page holds.
    """
    pages_RB = page_RB.long()
    node_RS, index_RS = node_PS[pages_RB].flatten(1).long(), index_PS[pages_RB].flatten(1)
    limit_NS = limits_NM.gather(1, node_RS.clamp(max=limits_NM.shape[1] - 1)[row_N])
    return (index_RS[row_N] < limit_NS).to(torch.uint8)


def plan_work(
    counts: Sequence[int],
    page_RB: torch.Tensor,
    visible_NS: torch.Tensor,
    tile_size: int,
    num_kv_heads: int,
) -> PagedWork:
    """Cut the tokens of every row, `counts` of them, into tiles.

    The work is dealt out so that the device is full; splits follow from shapes alone, without waiting for the device.
    """
    tile_3W = plan_tiles(counts, tile_size).to(visible_NS.device)
    seen_WC = seen_blocks(tile_3W, visible_NS, tile_size)
    num_splits = choose_splits(seen_WC.shape[0] * num_kv_heads, seen_WC.shape[1], num_processors(visible_NS.device))
    return PagedWork(page_RB, tile_3W, visible_NS, seen_WC, tile_size, num_splits)


def plan_tiles(counts: Sequence[int], tile_size: int) -> torch.Tensor:
    """(3, W) int32 on the host: row, first token, number of tokens."""
    tiles, start = [], 0
    for row, count in enumerate(counts):
        tiles += [(row, start + at, min(tile_size, count - at)) for at in range(0, count, tile_size)]
        start += count
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 3).t().contiguous()


def seen_blocks(tile_3W: torch.Tensor, visible_NS: torch.Tensor, tile_size: int) -> torch.Tensor:
    """(W, C) uint8: whether any query of a tile sees any slot of a block."""
    num_tokens, num_slots = visible_NS.shape
    num_blocks = -(-num_slots // BLOCK)
    padded_NS = torch.nn.functional.pad(visible_NS, (0, num_blocks * BLOCK - num_slots))
    any_NC = padded_NS.view(num_tokens, num_blocks, BLOCK).amax(-1)
    offset = torch.arange(tile_size, device=visible_NS.device)
    token_WQ = (tile_3W[1][:, None] + offset).long().clamp(max=num_tokens - 1)
    inside_WQ = offset < tile_3W[2][:, None]
    return (any_NC[token_WQ] * inside_WQ[..., None]).amax(1)


def choose_splits(num_programs: int, num_blocks: int, num_processors: int) -> int:
    """Programs that share one tile's slots: enough to fill the device twice, each with four blocks at least."""
    wanted = -(-2 * num_processors // max(1, num_programs))
    return max(1, min(wanted, num_blocks // 4, MAX_SPLITS))


def num_processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def paged_attention(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    """Softmax attention of every query over the slots that it sees, (N, H, D) in q's dtype; 0 where it sees none."""
    if q_NHD.is_cuda and q_NHD.dtype != torch.float64:  # the kernel has no double precision
        from mvtrain.engine.paged_attention_triton import paged_attention_on_gpu

        return paged_attention_on_gpu(q_NHD, k_PKSD, v_PKSD, work, scale)
    return paged_attention_plain(q_NHD, k_PKSD, v_PKSD, work, scale)


def paged_attention_plain(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    """The same in plain PyTorch, row by row: what the kernel is tested against, and what runs without a GPU."""
    num_groups = q_NHD.shape[1] // k_PKSD.shape[1]
    out_NHD = torch.zeros_like(q_NHD)
    wide = torch.promote_types(q_NHD.dtype, torch.float32)
    for row, start, count in work.tile_3W.t().tolist():
        if not count:
            continue
        tokens = slice(start, start + count)
        pages = work.page_RB[row].long()
        hidden_QS = work.visible_NS[tokens] == 0
        unseen_S = hidden_QS.all(0)[:, None, None]
        k_SKD, v_SKD = (
            x[pages].transpose(1, 2).flatten(0, 1).to(wide).masked_fill(unseen_S, 0) for x in (k_PKSD, v_PKSD)
        )
        k_SHD, v_SHD = (x.repeat_interleave(num_groups, 1) for x in (k_SKD, v_SKD))
        scores_HQS = torch.einsum("qhd,shd->hqs", q_NHD[tokens].to(wide), k_SHD) * scale
        weights_HQS = scores_HQS.masked_fill(hidden_QS, float("-inf")).softmax(-1).nan_to_num(0.0)
        out_NHD[tokens] = torch.einsum("hqs,shd->qhd", weights_HQS, v_SHD).to(out_NHD.dtype)
    return out_NHD
