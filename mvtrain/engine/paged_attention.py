"""Attention of a pass over a paged KV cache, where every query sees its own choice of its request's slots.

Branches of a request share one store of keys and values. The queries of a tile, and the G query heads of one key head,
are the rows of one matrix, so a program reads keys and values once for all of them, and passes over blocks of slots
that none of them sees. Several programs, the splits, may share one tile's blocks; their results are joined afterwards.

Nothing here waits for the device, and shapes follow from shapes alone, so a CUDA graph can hold all of it, except for
`paged_attention_torch`. Physical page 0 belongs to nobody: page tables are filled up with it, so its slots must be
empty or, like any other page's, invisible to the queries of the row.

Shape suffixes: N tokens of a pass, M nodes, H query heads, K key heads, G query heads per key head, D head width,
P physical pages, R rows, B pages of a row, S slots (of one page after P, else of a row: B * page size), W tiles,
T tokens of a tile, C blocks of slots, X splits. In kernels: Q queries of a tile times G, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import numpy as np
import torch
from torch.nn.functional import pad

try:
    import triton
    import triton.language as tl
except ImportError:  # not on every platform; the version in PyTorch does without
    triton = tl = None

INTERPRETED = triton is not None and triton.knobs.runtime.interpret
BLOCK_SIZE = 64
"""Slots that a program reads at a time."""
MAX_SPLITS = 32
MIN_BLOCKS = 4
"""Of a split. Fewer, and the joining costs more than it gains."""
CHUNK = 2**24
"""(query, slot) pairs whose visibility is worked out at a time: each needs 17 bytes meanwhile."""
_TYPES = (torch.float16, torch.bfloat16, torch.float32)
_STAGES = 3
_JOIN_ROWS = 8
_jit = triton.jit if triton else lambda function: function


@dataclass
class PagedWork:
    """What the attention of a pass works on; `build_work` makes it. One for all layers.

    To replay a CUDA graph with other content, build it inside of the graph: the last fields follow from the first.
    """

    page_RB: torch.Tensor
    """int32 physical page of each logical page of a row, 0 past the row's end."""
    tile_row_W: torch.Tensor
    """int32 row of a tile: up to `tile_size` neighbouring tokens of one row."""
    tile_start_W: torch.Tensor
    """int32 first token."""
    tile_count_W: torch.Tensor
    """int32 tokens; 0 fills up."""
    visible_NS: torch.Tensor
    """bool or uint8: may the token see the slot of its row?"""
    seen_WC: torch.Tensor
    """uint8: does any token of the tile see any slot of the block?"""
    tile_size: int
    num_splits: int
    block_size: int
    live_WS: torch.Tensor
    """uint8: does any token of the tile see the slot? What no one sees may be infinite, so it must not be read."""
    order_WC: torch.Tensor
    """int32: the blocks that are seen, in order, then filler. Without the gaps, loads can run ahead of the loop."""
    num_seen_W: torch.Tensor
    """int32: how many those are."""


def visibility(
    limits_NM: torch.Tensor,
    row_N: torch.Tensor,
    page_RB: torch.Tensor,
    node_PS: torch.Tensor,
    index_PS: torch.Tensor,
) -> torch.Tensor:
    """(N, S) bool: a token sees a slot if and only if the slot's index is below the token's limit for the slot's node.

    Args:
        limits_NM: int32; nodes from M on are invisible.
        row_N: int, each token's row of `page_RB`.
        page_RB: int32.
        node_PS: int, the node whose token a slot holds, not negative.
        index_PS: int32, the index of that token; int32's maximum where the slot is empty, so that nobody sees it.
    """
    limits_NM = pad(limits_NM, (0, 1), value=torch.iinfo(limits_NM.dtype).min)
    node_RS = node_PS[page_RB].flatten(1).clamp(max=limits_NM.shape[1] - 1).long()
    index_RS = index_PS[page_RB].flatten(1)
    num_tokens, num_slots = len(row_N), node_RS.shape[1]
    visible_NS = torch.empty((num_tokens, num_slots), dtype=torch.bool, device=row_N.device)
    step = max(1, CHUNK // max(1, num_slots))
    for start in range(0, num_tokens, step):
        part = slice(start, start + step)
        row_n = row_N[part].long()
        torch.lt(index_RS[row_n], limits_NM[part].gather(1, node_RS[row_n]), out=visible_NS[part])
    return visible_NS


def plan_tiles(
    count_R: Sequence[int], tile_size: int, num_tiles: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut the tokens of a pass, row after row, into tiles: (row, start, count), each (W,) int32.

    Args:
        count_R: tokens of each row.
        num_tiles: fill up to so many, with tiles of no tokens.

    Raises:
        ValueError: there are more than `num_tiles` tiles.
    """
    tiles, start = [], 0
    for row, count in enumerate(count_R):
        tiles += [(row, start + i, min(tile_size, count - i)) for i in range(0, count, tile_size)]
        start += count
    filler = 0 if num_tiles is None else num_tiles - len(tiles)
    if filler < 0:
        raise ValueError(f"{len(tiles)} tiles, expected at most {num_tiles}")
    tile_W3 = np.array(tiles + [(0, 0, 0)] * filler, dtype=np.int32).reshape(-1, 3)
    return tuple(np.ascontiguousarray(column) for column in tile_W3.T)


def choose_splits(num_tiles: int, num_kv_heads: int, num_blocks: int, num_processors: int) -> int:
    """Programs that share one tile's blocks, so that every processor has two programs, or as many as is worth it."""
    wanted = -(-2 * num_processors // max(1, num_tiles * num_kv_heads))
    return max(1, min(wanted, num_blocks // MIN_BLOCKS, MAX_SPLITS))


def build_work(
    page_RB: torch.Tensor,
    tiles: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    visible_NS: torch.Tensor,
    tile_size: int,
    num_splits: int,
    block_size: int = BLOCK_SIZE,
) -> PagedWork:
    """Find out which blocks each tile must read. Takes W * tile_size * S bytes meanwhile.

    Args:
        page_RB: (R, B) int32.
        tiles: row, start and count, each (W,) int32; see `plan_tiles`.
        visible_NS: (N, S) bool or uint8.
        block_size: a power of two, at least 16.
    """
    live_WS = _live(tiles[1], tiles[2], visible_NS, tile_size)
    num_blocks = -(-live_WS.shape[1] // block_size)
    padded_WS = pad(live_WS, (0, num_blocks * block_size - live_WS.shape[1]))
    seen_WC = padded_WS.unflatten(1, (num_blocks, block_size)).any(2)
    order_WC = _positions(seen_WC)
    num_seen_W = seen_WC.sum(1, dtype=torch.int32)
    seen_WC, live_WS = seen_WC.to(torch.uint8), live_WS.to(torch.uint8)
    return PagedWork(
        page_RB, *tiles, visible_NS, seen_WC, tile_size, num_splits, block_size, live_WS, order_WC, num_seen_W
    )


def _live(start_W: torch.Tensor, count_W: torch.Tensor, visible_NS: torch.Tensor, tile_size: int) -> torch.Tensor:
    """(W, S) bool: which slots any token of the tile sees."""
    offset_T = torch.arange(tile_size, device=start_W.device)
    token_WT = (start_W[:, None] + offset_T).clamp(max=len(visible_NS) - 1)
    inside_WT = offset_T < count_W[:, None]
    return (visible_NS[token_WT].bool() & inside_WT[..., None]).any(1)


def _positions(seen_WC: torch.Tensor) -> torch.Tensor:
    """(W, C) int32: the columns that are set, in order, then zeros."""
    num_tiles, num_blocks = seen_WC.shape
    place_WC = torch.where(seen_WC, seen_WC.cumsum(1) - 1, num_blocks)
    column_WC = torch.arange(num_blocks, dtype=torch.int32, device=seen_WC.device).expand(num_tiles, -1)
    # All that is not set goes to one more column.
    order_WC = column_WC.new_zeros((num_tiles, num_blocks + 1)).scatter_(1, place_WC, column_WC)
    return order_WC[:, :num_blocks].contiguous()


def paged_attention(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    """Attention of every token to the slots that it sees: (N, H, D) in q's type.

    Exactly 0 for tokens that see nothing and for tokens of no tile. Triton's kernel for tensors on a GPU, or with
    TRITON_INTERPRET=1; `paged_attention_torch` otherwise, and for float64.

    Args:
        q_NHD: head h belongs to key head h // (H // K).
        k_PKSD, v_PKSD: keys and values, of q's type.

    Raises:
        ValueError: types differ, H is no multiple of K, or the page size is no power of two or below 16.
    """
    _check(q_NHD, k_PKSD, v_PKSD)
    if triton is None or q_NHD.dtype not in _TYPES or not (q_NHD.is_cuda or INTERPRETED):
        return paged_attention_torch(q_NHD, k_PKSD, v_PKSD, work, scale)
    return _paged_attention_triton(q_NHD, k_PKSD, v_PKSD, work, scale)


def _check(q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor) -> None:
    if not q_NHD.dtype == k_PKSD.dtype == v_PKSD.dtype:
        raise ValueError(f"q, k and v of one type expected, not {q_NHD.dtype}, {k_PKSD.dtype}, {v_PKSD.dtype}")
    num_heads, num_kv_heads, page_size = q_NHD.shape[1], *k_PKSD.shape[1:3]
    if num_heads % num_kv_heads:
        raise ValueError(f"{num_heads} query heads cannot share {num_kv_heads} key heads evenly")
    if page_size < 16 or page_size & (page_size - 1):
        raise ValueError(f"a page size of {page_size}, expected a power of two from 16 on")


def paged_attention_torch(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    """The same in PyTorch, for any floating type: the reference, and slow. Waits for the device."""
    o_NHD = torch.zeros(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
    columns = (work.tile_row_W, work.tile_start_W, work.tile_count_W)
    for row, start, count in zip(*(column.tolist() for column in columns), strict=True):
        if count:
            tokens = slice(start, start + count)
            k_KSD, v_KSD = (x[work.page_RB[row]].transpose(0, 1).flatten(1, 2) for x in (k_PKSD, v_PKSD))
            o_NHD[tokens] = _dense(q_NHD[tokens], k_KSD, v_KSD, work.visible_NS[tokens].bool(), scale)
    return o_NHD


def _dense(
    q_THD: torch.Tensor, k_KSD: torch.Tensor, v_KSD: torch.Tensor, visible_TS: torch.Tensor, scale: float
) -> torch.Tensor:
    """(T, H, D) in q's type, from float32 or better."""
    exact = torch.promote_types(q_THD.dtype, torch.float32)
    q_TKGD = q_THD.unflatten(1, (len(k_KSD), -1)).to(exact)
    seen_S1 = visible_TS.any(0)[:, None]
    k_KSD, v_KSD = (x.to(exact).masked_fill(~seen_S1, 0.0) for x in (k_KSD, v_KSD))
    hidden_T11S = ~visible_TS[:, None, None]
    scores_TKGS = torch.einsum("tkgd,ksd->tkgs", q_TKGD, k_KSD) * scale
    # Twice: a token that sees nothing has no weights but NaN.
    weights_TKGS = scores_TKGS.masked_fill(hidden_T11S, float("-inf")).softmax(-1).masked_fill(hidden_T11S, 0.0)
    return torch.einsum("tkgs,ksd->tkgd", weights_TKGS, v_KSD).flatten(1, 2).to(q_THD.dtype)


def _paged_attention_triton(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    num_tokens, num_heads, width = q_NHD.shape
    o_NHD = torch.zeros(q_NHD.shape, dtype=q_NHD.dtype, device=q_NHD.device)
    if work.num_splits == 1:
        _launch(q_NHD, k_PKSD, v_PKSD, o_NHD, None, work, scale)
        return o_NHD
    part_XNHD = o_NHD.new_empty((work.num_splits, *q_NHD.shape), dtype=torch.float32)
    lse_XNH = part_XNHD.new_full(part_XNHD.shape[:3], float("-inf"))
    _launch(q_NHD, k_PKSD, v_PKSD, part_XNHD, lse_XNH, work, scale)
    num_rows = num_tokens * num_heads
    _join[(triton.cdiv(num_rows, _JOIN_ROWS),)](
        part_XNHD, lse_XNH, o_NHD, num_rows,
        WIDTH=width, COLUMNS=_padded(width), ROWS=_JOIN_ROWS, SPLITS=work.num_splits,
    )  # fmt: skip
    return o_NHD


def _padded(size: int) -> int:
    """The next power of two that a matrix product on a GPU takes."""
    return max(16, triton.next_power_of_2(size))


def _launch(q_NHD, k_PKSD, v_PKSD, out, lse_XNH, work: PagedWork, scale: float) -> None:
    """Write the result to `out` (N, H, D), or with several splits their results (X, N, H, D) and `lse` (X, N, H)."""
    num_tokens, num_heads, width = q_NHD.shape
    num_kv_heads, page_size = k_PKSD.shape[1:3]
    groups = num_heads // num_kv_heads
    num_rows = _padded(work.tile_size * groups)
    visible_NS = work.visible_NS.view(torch.uint8)
    tiles = (work.tile_row_W, work.tile_start_W, work.tile_count_W)
    _attend[(len(work.tile_row_W), num_kv_heads, work.num_splits)](
        q_NHD, k_PKSD, v_PKSD, out, lse_XNH, work.page_RB, *tiles, work.num_seen_W, work.order_WC,
        visible_NS, work.live_WS, num_tokens, visible_NS.shape[1], scale * log2(np.e),
        *q_NHD.stride(), *k_PKSD.stride(), *v_PKSD.stride(),
        work.page_RB.stride(0), work.order_WC.stride(0), visible_NS.stride(0), work.live_WS.stride(0),
        HEADS=num_heads, GROUPS=groups, WIDTH=width, COLUMNS=_padded(width), ROWS=num_rows,
        SLOTS=work.block_size, PAGE=page_size, SPLITS=work.num_splits,
        num_warps=4 if num_rows <= 64 else 8, num_stages=_STAGES,
    )  # fmt: skip


@_jit
def _attend(
    q, k, v, out, lse, page, tile_row, tile_start, tile_count, num_seen, order, visible, live,
    num_tokens, num_slots, scale,
    q_token, q_head, q_width, k_page, k_head, k_slot, k_width, v_page, v_head, v_slot, v_width,
    page_row, order_tile, visible_token, live_tile,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    SLOTS: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """One tile, one key head, every SPLITS-th of the blocks that the tile sees. Logarithms are to the base of 2."""
    tile = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    num_blocks = tl.load(num_seen + tile)
    if split >= num_blocks:
        return
    row = tl.load(tile_row + tile).to(tl.int64)
    query = tl.arange(0, ROWS)
    token = tl.load(tile_start + tile).to(tl.int64) + query // GROUPS
    head = kv_head * GROUPS + query % GROUPS
    inside = query // GROUPS < tl.load(tile_count + tile)
    column = tl.arange(0, COLUMNS)
    used = column < WIDTH
    q_cells = q + (token * q_token + head * q_head)[:, None] + (column * q_width)[None, :]
    queries = tl.load(q_cells, inside[:, None] & used[None, :], 0.0)
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.full((ROWS,), 0.0, tl.float32)
    mean = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for i in range(split, num_blocks, SPLITS):
        slot = tl.load(order + tile * order_tile + i) * SLOTS + tl.arange(0, SLOTS)
        exists = slot < num_slots
        # A slot that no query sees may hold infinities, and 0 * inf would spoil the sum.
        read = tl.load(live + tile * live_tile + slot, exists, 0) != 0
        sees_cells = visible + (token * visible_token)[:, None] + slot[None, :]
        sees = tl.load(sees_cells, inside[:, None] & exists[None, :], 0) != 0
        at_page = tl.load(page + row * page_row + slot // PAGE, exists, 0).to(tl.int64)
        k_cells = (
            k + (at_page * k_page + slot % PAGE * k_slot + kv_head * k_head)[None, :] + (column * k_width)[:, None]
        )
        v_cells = (
            v + (at_page * v_page + slot % PAGE * v_slot + kv_head * v_head)[:, None] + (column * v_width)[None, :]
        )
        keys = tl.load(k_cells, used[:, None] & read[None, :], 0.0)
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        scores = tl.where(sees, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        # Of a query that has seen nothing yet: -inf - -inf would be NaN.
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, 1)
        values = tl.load(v_cells, read[:, None] & used[None, :], 0.0)
        mean = tl.dot(weights.to(values.dtype), values, mean * shrink[:, None], input_precision="ieee")
        top = new_top
    total = tl.where(total == 0.0, 1.0, total)
    mean = mean / total[:, None]
    place = token * HEADS + head
    if SPLITS > 1:
        place += split.to(tl.int64) * num_tokens * HEADS
        tl.store(lse + place, top + tl.log2(total), inside)
    out_cells = out + (place * WIDTH)[:, None] + column[None, :]
    tl.store(out_cells, mean.to(out.dtype.element_ty), inside[:, None] & used[None, :])


@_jit
def _join(
    part, lse, out, num_rows,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """The mean of the splits' results, weighted by what each has seen. A split that has seen nothing wrote nothing."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    column = tl.arange(0, COLUMNS)
    used = (column < WIDTH)[None, :]
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    for i in range(SPLITS):
        top = tl.maximum(top, tl.load(lse + i * num_rows.to(tl.int64) + row, inside, float("-inf")))
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.full((ROWS,), 0.0, tl.float32)
    mean = tl.full((ROWS, COLUMNS), 0.0, tl.float32)
    for i in range(SPLITS):
        place = i * num_rows.to(tl.int64) + row
        log_weight = tl.load(lse + place, inside, float("-inf"))
        weight = tl.exp2(log_weight - base)
        cells = part + (place * WIDTH)[:, None] + column[None, :]
        seen = (log_weight > float("-inf"))[:, None] & used
        mean += weight[:, None] * tl.load(cells, seen, 0.0)
        total += weight
    mean = mean / tl.where(total == 0.0, 1.0, total)[:, None]
    out_cells = out + (row * WIDTH)[:, None] + column[None, :]
    tl.store(out_cells, mean.to(out.dtype.element_ty), inside[:, None] & used)
