"""Attention over pages: the Triton kernel in Triton's interpreter and the plain version, against single queries."""

from __future__ import annotations

import importlib
import random
import sys

import pytest
import torch

from mvtrain.engine.paged_attention import (
    BLOCK,
    PagedWork,
    choose_splits,
    paged_attention_plain,
    plan_tiles,
    plan_work,
    seen_blocks,
    visibility,
)

PAGE = 16


@pytest.fixture
def kernel(monkeypatch):
    """The Triton kernel in Triton's interpreter, which runs it on the CPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "mvtrain.engine.paged_attention_triton", raising=False)
    module = importlib.import_module("mvtrain.engine.paged_attention_triton")
    yield module.paged_attention_on_gpu
    sys.modules.pop("mvtrain.engine.paged_attention_triton")


def case(
    seed: int, groups: int, width: int, tile_size: int, dtype=torch.float32, lengths=(70, 5, 200), counts=(3, 1, 40)
):
    """Rows on shuffled pages; every query sees some slots of its row, in runs; what nobody sees is not a number."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    num_kv_heads, num_pages = 2, 30
    free = list(range(num_pages))
    rng.shuffle(free)
    most = max(-(-length // PAGE) for length in lengths)
    page_RB = torch.full((len(lengths), most), num_pages, dtype=torch.int32)
    visible_NS = torch.zeros(sum(counts), most * PAGE, dtype=torch.uint8)
    start = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = [free.pop() for _ in range(-(-length // PAGE))]
        page_RB[row, : len(pages)] = torch.tensor(pages)
        for token in range(start, start + count):
            for _ in range(rng.randint(1, 3)):
                a, b = sorted(rng.choices(range(length + 1), k=2))
                visible_NS[token, a:b] = 1
        start += count
    visible_NS[1] = 0  # a query that sees nothing
    shape = (num_pages + 1, num_kv_heads, PAGE, width)
    k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    seen = torch.zeros(num_pages + 1, PAGE, dtype=torch.bool)
    start = 0
    for row, count in enumerate(counts):
        slots = visible_NS[start : start + count].amax(0).view(most, PAGE).bool()
        seen[page_RB[row].long()] |= slots
        start += count
    k.transpose(1, 2)[~seen], v.transpose(1, 2)[~seen] = float("nan"), float("inf")
    q = torch.randn(num_kv_heads * groups, sum(counts), width, generator=generator, dtype=torch.float64).transpose(0, 1)
    work = plan_work(counts, page_RB, visible_NS, tile_size, num_kv_heads)
    return q.to(dtype), k.to(dtype), v.to(dtype), work, counts


def brute_force(q_NHD, k_PKSD, v_PKSD, work, counts, scale) -> torch.Tensor:
    """One query, one head and one slot at a time."""
    groups = q_NHD.shape[1] // k_PKSD.shape[1]
    out = torch.zeros(q_NHD.shape, dtype=torch.float64)
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    for n in range(len(q_NHD)):
        slots = work.visible_NS[n].nonzero().flatten().tolist()
        for h in range(q_NHD.shape[1]):
            places = [(int(work.page_RB[rows[n], s // PAGE]), h // groups, s % PAGE) for s in slots]
            if places:
                keys, values = (torch.stack([x[p] for p in places]).double() for x in (k_PKSD, v_PKSD))
                weights = (keys @ q_NHD[n, h].double() * scale).softmax(0)
                out[n, h] = weights @ values
    return out


CASES = [(1, 32, 16), (3, 64, 16), (4, 80, 8), (8, 16, 4), (7, 96, 16)]


@pytest.mark.parametrize(("groups", "width", "tile_size"), CASES)
def test_the_plain_version_is_attention(groups, width, tile_size):
    *inputs, work, counts = case(groups, groups, width, tile_size, torch.float64)
    expected = brute_force(*inputs, work, counts, 0.3)
    assert (paged_attention_plain(*inputs, work, 0.3) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("num_splits", [1, 2, 3])
@pytest.mark.parametrize(("groups", "width", "tile_size"), CASES)
def test_the_kernel_is_attention(kernel, groups, width, tile_size, num_splits):
    *inputs, work, counts = case(groups, groups, width, tile_size)
    work.num_splits = num_splits
    expected = brute_force(*inputs, work, counts, 0.3)
    result = kernel(*inputs, work, 0.3)
    assert (result - expected).abs().max() < 1e-5
    assert (result[1] == 0).all() and result.dtype == torch.float32
    number = int(work.visible_NS[0].nonzero()[0])
    work.visible_NS[0, number] = 0  # the control: one slot less
    assert (kernel(*inputs, work, 0.3) - expected).abs().max() > 1e-3


def test_the_kernel_in_half_precision(kernel):
    """float16 only: Triton's interpreter multiplies no bfloat16."""
    *inputs, work, counts = case(5, 4, 64, 16, torch.float16)
    work.num_splits = 2
    expected = brute_force(*inputs, work, counts, 0.125)
    result = kernel(*inputs, work, 0.125)
    assert result.dtype == torch.float16 and (result - expected).abs().max() < 5e-3


def test_padding_of_a_captured_graph_changes_nothing(kernel):
    """More tokens, tiles and slots than there are, as a graph of a fixed size has them."""
    *inputs, work, _ = case(9, 3, 32, 16)
    q, k, v = inputs
    expected = kernel(q, k, v, work, 0.3)
    num_tokens = len(work.visible_NS)
    pages = torch.nn.functional.pad(work.page_RB, (0, 4, 0, 5), value=30)
    visible = torch.nn.functional.pad(work.visible_NS, (0, 4 * PAGE, 0, 7))
    tiles = torch.nn.functional.pad(work.tile_3W, (0, 6))
    padded = PagedWork(pages, tiles, visible, seen_blocks(tiles, visible, 16), 16, 2)
    q = torch.nn.functional.pad(q, (0, 0, 0, 0, 0, 7), value=float("nan"))
    result = kernel(q, k, v, padded, 0.3)
    assert (result[:num_tokens] - expected).abs().max() < 1e-6
    assert (result[num_tokens:] == 0).all()


def test_tiles_by_hand():
    assert plan_tiles([3, 1, 5], 2).tolist() == [[0, 0, 1, 2, 2, 2], [0, 2, 3, 4, 6, 8], [2, 1, 1, 2, 2, 1]]
    assert plan_tiles([], 4).shape == (3, 0)


def test_visibility_against_a_loop():
    rng = random.Random(3)
    num_nodes, num_pages = 5, 9
    node_PS = torch.tensor(
        [[rng.randrange(num_nodes + 2) for _ in range(PAGE)] for _ in range(num_pages)], dtype=torch.int32
    )
    index_PS = torch.tensor(
        [[rng.choice((0, 1, 2, 5, 2**31 - 1)) for _ in range(PAGE)] for _ in range(num_pages)], dtype=torch.int32
    )
    limits_NM = torch.tensor(
        [[rng.choice((0, 1, 3, 2**31 - 2)) for _ in range(num_nodes)] + [0] for _ in range(6)], dtype=torch.int32
    )
    page_RB, row_N = torch.tensor([[3, 1], [0, 8]], dtype=torch.int32), torch.tensor([0, 0, 1, 0, 1, 1])
    visible = visibility(limits_NM, row_N, page_RB, node_PS, index_PS)
    for n in range(6):
        for s in range(2 * PAGE):
            page = page_RB[row_N[n], s // PAGE]
            node, index = int(node_PS[page, s % PAGE]), int(index_PS[page, s % PAGE])
            assert visible[n, s] == (node < num_nodes and index < limits_NM[n, node]), (n, s)
    assert 0 < visible.sum() < visible.numel()


def test_blocks_that_no_query_of_a_tile_sees_are_skipped():
    visible = torch.zeros(3, 5 * BLOCK, dtype=torch.uint8)
    visible[0, 3], visible[1, BLOCK], visible[2, 4 * BLOCK :] = 1, 1, 1
    seen = seen_blocks(plan_tiles([2, 1], 16), visible, 16)
    assert seen.tolist() == [[1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]


def test_slots_are_split_where_programs_are_few():
    assert choose_splits(num_programs=1000, num_blocks=100, num_processors=132) == 1
    assert choose_splits(num_programs=2, num_blocks=500, num_processors=132) == 16
    assert choose_splits(num_programs=40, num_blocks=500, num_processors=132) == 7
    assert choose_splits(num_programs=2, num_blocks=9, num_processors=132) == 2
    assert choose_splits(num_programs=1, num_blocks=1, num_processors=132) == 1
