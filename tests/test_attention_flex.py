"""FlexAttention's mask and tiles against the dense mask; its kernels run on CUDA only (tests/gpu)."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from mvtrain.attention import flex
from mvtrain.attention.reference import attend as reference
from mvtrain.layout import SCHEMES, Layout
from tests.layouts import random_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(12))
def test_mask_and_tiles_are_the_dense_mask(seed, scheme, monkeypatch):
    monkeypatch.setattr(flex, "TILE", 16)
    layout = random_layout(seed, scheme)
    flex.block_mask.cache_clear()
    block_mask, dense_TT = flex.block_mask(layout, CPU), layout.dense_mask()
    T = layout.num_tokens
    assert torch.equal(create_mask(block_mask.mask_mod, 1, 1, T, T, device="cpu")[0, 0], dense_TT)
    padded = torch.nn.functional.pad(dense_TT, (0, -T % 16, 0, -T % 16))
    tiles_BBtt = padded.unflatten(1, (-1, 16)).unflatten(0, (-1, 16)).transpose(1, 2)
    assert torch.equal(block_mask.to_dense()[0, 0].bool(), tiles_BBtt.any(-1).any(-1))
    whole = kept(block_mask.full_kv_num_blocks, block_mask.full_kv_indices)
    assert torch.equal(whole, tiles_BBtt.all(-1).all(-1))
    flex.block_mask.cache_clear()


def kept(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """BoolTensor (B, B) of the tiles that a list of tiles names."""
    tiles = torch.zeros_like(indices[0, 0], dtype=torch.bool)
    for row, (count, columns) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0], strict=True)):
        tiles[row, columns[:count].long()] = True
    return tiles


def test_forward_in_eager_mode_equals_the_reference():
    layout = Layout.pack([random_layout(seed) for seed in range(6)])
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(layout.num_tokens, h, 16, generator=random) for h in (4, 2, 2))
    mask = flex.block_mask(layout, CPU)
    out = flex_attention(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask, scale=0.3, enable_gqa=True)
    assert (out[0].transpose(0, 1) - reference(q, k, v, layout, 0.3)).abs().max() < 1e-5
    assert layout.num_tokens > 2 * flex.TILE, "more than one tile"
