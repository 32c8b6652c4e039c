"""How many rounds of rectangles a plan takes out of its causal call: an explicit estimate of what each choice costs.

More levels copy fewer keys and waste fewer tiles, and pay with launches and with joining rows. The estimate only has
to put plans in order; `benchmarks/attention.py` prints it beside what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from mvtrain.attention.plan import Geometry


class Heads(NamedTuple):
    """The shape of an attention layer."""

    num_heads: int
    num_key_heads: int
    width: int
    num_bytes: int
    """Of one number of q, k and v."""

    @classmethod
    def of(cls, q_THD: torch.Tensor, k_TKD: torch.Tensor) -> Heads:
        return cls(q_THD.shape[1], k_TKD.shape[1], q_THD.shape[2], q_THD.element_size())


@dataclass(frozen=True)
class CostModel:
    """What a device takes for the parts of forward and backward together."""

    seconds_per_launch: float
    one_launch_per_sequence: bool
    """Whether a kernel is launched per sequence, as on the CPU, or per call."""
    tile_q: int
    tile_k: int
    """Queries and keys are computed in tiles of this size, however few of them are there."""
    folds_groups: bool
    """Whether the query heads of one key head count as more queries where there is no causal mask."""
    flops_per_second: float
    bytes_per_second: float
    max_gathered: float
    """Gathered keys, in multiples of the tokens, beyond which a plan takes too much memory to be considered."""


CUDA = CostModel(60e-6, False, 128, 128, False, 350e12, 2e12, 1.3)
"""An H100, from its specification; not fitted to measurements. Flash attention 2's backward pass holds the gathered
keys' gradients once per query head, hence the narrow bound."""

CPU = CostModel(100e-6, True, 256, 64, True, 120e9, 10e9, float("inf"))
"""Two cores of an AMD EPYC with AVX-512, from timings of the kernel."""


def choose_levels(geometry: Geometry, heads: Heads, model: CostModel) -> int:
    """The number of levels with the least estimated cost; of equal ones the lowest."""
    candidates = [
        levels
        for levels in range(geometry.max_levels + 1)
        if geometry.num_gathered(levels) <= model.max_gathered * geometry.num_tokens
    ]
    return min(candidates or [geometry.max_levels], key=lambda levels: seconds(geometry, levels, heads, model))


def seconds(geometry: Geometry, levels: int, heads: Heads, model: CostModel) -> float:
    """Estimated seconds of forward and backward of one layer."""
    shapes = geometry.shapes(levels)
    num_tiles = sum(_tiles(shape, heads, model) for shape in shapes)
    flops = 14 * num_tiles * model.tile_q * model.tile_k * heads.num_heads * heads.width
    num_launches = len(shapes) if model.one_launch_per_sequence else 1 + levels
    num_bytes = geometry.num_gathered(levels) * _gather_bytes(heads) + geometry.num_merged(levels) * _merge_bytes(heads)
    return num_launches * model.seconds_per_launch + flops / model.flops_per_second + num_bytes / model.bytes_per_second


def _tiles(shape: tuple[int, int, bool], heads: Heads, model: CostModel) -> float:
    """Tiles per query head of one (queries, keys, causal)."""
    num_queries, num_keys, causal = shape
    groups = heads.num_heads // heads.num_key_heads if model.folds_groups and not causal else 1
    rows = -(-num_queries * groups // model.tile_q) / groups
    return rows * -(-num_keys // model.tile_k) * (0.5 + 0.5 / max(rows, 1) if causal else 1)


def _gather_bytes(heads: Heads) -> int:
    """Keys and values are copied twice (read, written), their gradients written per query head, read, and added."""
    copies = 2 * 2 * 2 * heads.num_key_heads * heads.width * heads.num_bytes
    expanded = 2 * 2 * heads.num_heads * heads.width * heads.num_bytes
    return copies + expanded + 2 * 2 * 4 * heads.num_key_heads * heads.width


def _merge_bytes(heads: Heads) -> int:
    """A part is written and read, its sum in float32 read and written, in forward and in backward."""
    return 2 * (2 * heads.num_bytes + 2 * 4) * heads.num_heads * heads.width
