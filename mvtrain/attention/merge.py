"""Joining two parts of attention over the same queries by their log-sum-exp.

With out_i = sum of softmax_i * v over the keys of part i, the whole is sum_i exp(lse_i - lse) * out_i where
lse = log sum_i exp(lse_i). Flash attention's inner loop does the same between tiles.

Shape suffixes: Q queries, H heads, D head width.
"""

from __future__ import annotations

import torch

_ROWS = 4096  # rows at a time, so that what is computed on the way stays small


def merge_(out_QHD: torch.Tensor, lse_HQ: torch.Tensor, part_QHD: torch.Tensor, part_HQ: torch.Tensor) -> None:
    """Join a part into `out` and `lse`, in place. A row of the part without keys (log-sum-exp -inf) changes nothing."""
    if out_QHD.is_cuda:
        from mvtrain.attention.merge_triton import merge_on_gpu_

        return merge_on_gpu_(out_QHD, lse_HQ, part_QHD, part_HQ)
    for start in range(0, len(out_QHD), _ROWS):
        rows = slice(start, start + _ROWS)
        _merge_rows_(out_QHD[rows], lse_HQ[:, rows], part_QHD[rows], part_HQ[:, rows])


def _merge_rows_(out_QHD: torch.Tensor, lse_HQ: torch.Tensor, part_QHD: torch.Tensor, part_HQ: torch.Tensor) -> None:
    joined_HQ = torch.logaddexp(lse_HQ, part_HQ)
    out_QHD *= (lse_HQ - joined_HQ).exp().t()[..., None]
    out_QHD += part_QHD * (part_HQ - joined_HQ).exp().t()[..., None]
    lse_HQ.copy_(joined_HQ)
