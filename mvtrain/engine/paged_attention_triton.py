"""`mvtrain.engine.paged_attention` as a Triton kernel: a program for every tile, key head and split of the slots.

The query heads of a key head and the queries of a tile are the rows of one matrix product, so keys and values are read
once for all of them. Where the slots are split, the parts are joined by their log-sum-exp.

Shape suffixes: N tokens of a pass, H query heads, K key heads, D head width, P pages, S slots, X splits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mvtrain.engine.paged_attention import BLOCK, PagedWork


def paged_attention_on_gpu(
    q_NHD: torch.Tensor, k_PKSD: torch.Tensor, v_PKSD: torch.Tensor, work: PagedWork, scale: float
) -> torch.Tensor:
    """See `mvtrain.engine.paged_attention.paged_attention`. Nothing here waits for the device."""
    num_tokens, num_heads, head_dim = q_NHD.shape
    num_groups, num_splits = num_heads // k_PKSD.shape[1], work.num_splits
    num_tiles, num_blocks = work.seen_WC.shape
    # Zero and -inf for tokens in no tile: padding must not spoil what comes after.
    part_XNHD = torch.zeros((num_splits, *q_NHD.shape), dtype=_part_dtype(q_NHD, num_splits), device=q_NHD.device)
    lse_XNH = torch.full((num_splits, num_tokens, num_heads), float("-inf"), dtype=torch.float32, device=q_NHD.device)
    assert q_NHD.stride(2) == k_PKSD.stride(3) == v_PKSD.stride(3) == 1 and k_PKSD.stride() == v_PKSD.stride()
    with torch.cuda.device_of(q_NHD):  # Triton launches on the current device
        _attend[(num_tiles, k_PKSD.shape[1], num_splits)](
            q_NHD, k_PKSD, v_PKSD, part_XNHD, lse_XNH, work.page_RB, work.tile_3W, work.visible_NS, work.seen_WC,
            scale, num_tiles, num_blocks, work.page_RB.shape[1], work.visible_NS.shape[1],
            q_NHD.stride(0), q_NHD.stride(1), *k_PKSD.stride()[:3],
            *part_XNHD.stride()[:3], *lse_XNH.stride()[:2],
            GROUPS=num_groups, WIDTH=head_dim, PAGE=k_PKSD.shape[2], SLOTS=BLOCK, SPLITS=num_splits,
            ROWS=max(16, triton.next_power_of_2(work.tile_size * num_groups)),
            COLUMNS=max(16, triton.next_power_of_2(head_dim)),
            num_warps=4, num_stages=2,
        )  # fmt: skip
    return part_XNHD[0] if num_splits == 1 else _join(part_XNHD, lse_XNH).to(q_NHD.dtype)


def _part_dtype(q_NHD: torch.Tensor, num_splits: int) -> torch.dtype:
    return q_NHD.dtype if num_splits == 1 else torch.float32


def _join(part_XNHD: torch.Tensor, lse_XNH: torch.Tensor) -> torch.Tensor:
    top_NH = lse_XNH.amax(0)
    weight_XNH = (lse_XNH - top_NH.masked_fill(top_NH == float("-inf"), 0.0)).exp()
    total_NH = weight_XNH.sum(0)
    return (part_XNHD * weight_XNH[..., None]).sum(0) / total_NH.masked_fill(total_NH == 0, 1.0)[..., None]


@triton.jit
def _attend(
    q, k, v, out, lse, page_RB, tile_3W, visible_NS, seen_WC,
    scale, num_tiles, num_blocks, pages_of_row, num_slots,
    q_token, q_head, kv_page, kv_head, kv_slot,
    out_split, out_token, out_head, lse_split, lse_token,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, PAGE: tl.constexpr, SLOTS: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tile, key_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tl.load(tile_3W + tile).to(tl.int64)
    count = tl.load(tile_3W + 2 * num_tiles + tile)
    lines = tl.arange(0, ROWS)
    is_query = lines // GROUPS < count
    token = tl.load(tile_3W + num_tiles + tile).to(tl.int64) + lines // GROUPS
    head = key_head * GROUPS + lines % GROUPS
    columns = tl.arange(0, COLUMNS)
    inside = is_query[:, None] & (columns < WIDTH)[None, :]
    queries = tl.load(q + (token * q_token + head * q_head)[:, None] + columns[None, :], inside, 0.0)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    per_split = tl.cdiv(num_blocks, SPLITS)
    # A tile without queries loops over nothing.
    last = tl.minimum((split + 1) * per_split, num_blocks) * (count > 0).to(tl.int32)
    for block in range(split * per_split, last):
        if tl.load(seen_WC + tile.to(tl.int64) * num_blocks + block) != 0:
            slots = block * SLOTS + tl.arange(0, SLOTS)
            exists = slots < num_slots
            flags = tl.load(
                visible_NS + token[:, None] * num_slots + slots[None, :], is_query[:, None] & exists[None, :], 0
            )
            visible = flags != 0
            # What nobody sees may hold anything, and 0 x inf would spoil the sum: it is not read.
            read = tl.max(flags.to(tl.int32), 0) != 0
            page = tl.load(page_RB + row * pages_of_row + slots // PAGE, exists, 0).to(tl.int64)
            places = page * kv_page + key_head * kv_head + (slots % PAGE) * kv_slot
            cells = read[None, :] & (columns < WIDTH)[:, None]
            keys = tl.load(k + places[None, :] + columns[:, None], cells, 0.0)
            scores = tl.dot(queries, keys, input_precision="ieee") * scale
            scores = tl.where(visible, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
            weights = tl.exp(scores - base[:, None])
            shrink = tl.exp(top - base)
            values = tl.load(v + places[:, None] + columns[None, :], read[:, None] & (columns < WIDTH)[None, :], 0.0)
            summed = summed * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
            total = total * shrink + tl.sum(weights, 1)
            top = new_top
    sees = total > 0
    result = summed / tl.where(sees, total, 1.0)[:, None]
    place = split * out_split + token * out_token + head * out_head
    tl.store(out + place[:, None] + columns[None, :], result.to(out.dtype.element_ty), inside)
    log_sum = tl.where(sees, top + tl.log(tl.where(sees, total, 1.0)), float("-inf"))
    tl.store(lse + split * lse_split + token * lse_token + head, log_sum, is_query)
