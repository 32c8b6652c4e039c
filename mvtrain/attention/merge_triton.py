"""`mvtrain.attention.merge` as one Triton kernel: each row of a part is read once, and rows without keys not at all.

Shape suffixes: Q queries, H heads, D head width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROWS = 64


def merge_on_gpu_(out_QHD: torch.Tensor, lse_HQ: torch.Tensor, part_QHD: torch.Tensor, part_HQ: torch.Tensor) -> None:
    """Join a part into `out` and `lse`, in place; see `mvtrain.attention.merge.merge_`."""
    num_rows, num_heads, width = out_QHD.shape
    assert out_QHD.stride(2) == part_QHD.stride(2) == lse_HQ.stride(1) == part_HQ.stride(1) == 1
    with torch.cuda.device_of(out_QHD):  # Triton launches on the current device
        _merge[(triton.cdiv(num_rows, _ROWS), num_heads)](
            out_QHD, lse_HQ, part_QHD, part_HQ, num_rows,
            out_QHD.stride(0), out_QHD.stride(1), lse_HQ.stride(0),
            part_QHD.stride(0), part_QHD.stride(1), part_HQ.stride(0),
            WIDTH=width, COLUMNS=triton.next_power_of_2(width), ROWS=_ROWS,
        )  # fmt: skip


@triton.jit
def _merge(
    out, lse, part, part_lse, num_rows,
    out_row, out_head, lse_head, part_row, part_head, part_lse_head,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_rows
    new = tl.load(part_lse + head * part_lse_head + rows, inside, float("-inf"))
    has_keys = new > float("-inf")
    old = tl.load(lse + head * lse_head + rows, has_keys, 0.0)
    top = tl.maximum(old, new)
    joined = top + tl.log(tl.exp(old - top) + tl.exp(new - top))
    columns = tl.arange(0, COLUMNS)
    used = has_keys[:, None] & (columns < WIDTH)[None, :]
    out_cells = out + (rows * out_row + head * out_head)[:, None] + columns[None, :]
    part_cells = part + (rows * part_row + head * part_head)[:, None] + columns[None, :]
    sum_so_far = tl.load(out_cells, used, 0.0).to(tl.float32) * tl.exp(old - joined)[:, None]
    added = tl.load(part_cells, used, 0.0).to(tl.float32) * tl.exp(new - joined)[:, None]
    tl.store(out_cells, sum_so_far + added, used)
    tl.store(lse + head * lse_head + rows, joined, has_keys)
