"""Plans: each visible pair once and no other, in any number of levels; the geometry by hand; the choice of levels."""

from dataclasses import replace

import pytest
import torch

from mvtrain.attention import cost
from mvtrain.attention.plan import Geometry, Plan, check_plan
from mvtrain.attention.rectangles import Rectangle
from mvtrain.layout import SCHEMES, Layout
from tests.layouts import TAG, random_layout

HEADS = cost.Heads(num_heads=40, num_key_heads=8, width=128, num_bytes=2)


def counted_pairs(plan: Plan, num_tokens: int) -> torch.Tensor:
    """How often each (query, key) is computed, read the way varlen kernels document it: IntTensor (T, T)."""
    count_TT = torch.zeros(num_tokens, num_tokens, dtype=torch.int32)
    for call in plan.calls:
        rows = torch.arange(*call.query_rows)
        keys = torch.arange(*call.key_rows) if call.key_index_S is None else call.key_index_S
        for b in range(len(call.cu_seqlens_q) - 1):
            queries_b = rows[call.cu_seqlens_q[b] : call.cu_seqlens_q[b + 1]]
            keys_b = keys[call.cu_seqlens_k[b] : call.cu_seqlens_k[b + 1]]
            assert len(queries_b) <= call.max_seqlen_q and len(keys_b) <= call.max_seqlen_k
            seen = torch.ones(len(queries_b), len(keys_b), dtype=torch.int32)
            if call.causal:
                seen = seen.tril(len(keys_b) - len(queries_b))
            count_TT[queries_b[:, None], keys_b] += seen
    return count_TT


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("first_seed", range(0, 100, 20))
def test_every_plan_computes_each_visible_pair_once(first_seed, scheme):
    for seed in range(first_seed, first_seed + 20):
        layout = random_layout(seed, scheme)
        geometry, expected = Geometry(layout), layout.dense_mask().int()
        for levels in range(geometry.max_levels + 1):
            plan = geometry.plan(levels)
            check_plan(plan, layout)
            assert torch.equal(counted_pairs(plan, layout.num_tokens), expected), (seed, levels)


def test_the_layouts_above_are_not_all_simple():
    geometries = [Geometry(random_layout(seed)) for seed in range(100)]
    assert max(geometry.max_levels for geometry in geometries) >= 8
    assert max(len(run.sees) for geometry in geometries for run in geometry.runs) >= 3
    calls = [call for geometry in geometries for call in geometry.plan(geometry.max_levels).calls[1:]]
    assert any(0 in call.lengths_q for call in calls) and any(0 in call.lengths_k for call in calls)


def test_with_all_levels_the_isolated_scheme_copies_no_key():
    for seed in range(50):
        geometry = Geometry(random_layout(seed))
        assert geometry.num_gathered(geometry.max_levels) == 0
        assert geometry.plan(geometry.max_levels).calls[0].key_index_S is None


def worked_example() -> Layout:
    """Text 0:4 with tags, path 1 4:8, path 2 8:13, conclusion and text 13:20; then a document 20:23."""
    ids = [1, TAG.parallel, TAG.goal, TAG.end_goal]
    ids += [TAG.path, 1, 1, TAG.end_path, TAG.path, 1, 1, 1, TAG.end_path]
    ids += [TAG.conclusion, 1, TAG.end_conclusion, TAG.end_parallel, 1, 1, 1]
    return Layout.pack([Layout.from_ids(ids, TAG), Layout.from_ids([1, 1, 1], TAG)])


def test_geometry_by_hand():
    geometry = Geometry(worked_example())
    assert [(run.start, run.end) for run in geometry.runs] == [(0, 8), (8, 13), (13, 20), (20, 23)]
    assert geometry.rounds == [[Rectangle(13, 20, 0, 13)], [Rectangle(8, 13, 0, 4)]]
    gather, merge = geometry.plan(0).calls[0], geometry.plan(2)
    assert gather.lengths_q == (8, 5, 7, 3) and gather.lengths_k == (8, 9, 20, 3)
    assert gather.key_index_S.tolist() == [*range(8), *range(4), *range(8, 13), *range(20), *range(20, 23)]
    assert merge.calls[0].lengths_k == (8, 5, 7, 3) and merge.calls[0].key_index_S is None
    assert [(call.query_rows, call.key_rows, call.causal) for call in merge.calls[1:]] == [
        ((13, 20), (0, 13), False),
        ((8, 13), (0, 4), False),
    ]
    assert geometry.plan(1).calls[0].num_gathered == 4 + 23


def test_gaps_between_rectangles_become_sequences_without_keys_or_queries():
    document = worked_example()
    geometry = Geometry(Layout.pack([document, document]))
    first_round = geometry.plan(1).calls[1]
    assert (first_round.query_rows, first_round.key_rows) == ((13, 43), (0, 36))
    assert first_round.lengths_q == (7, 0, 16, 7)
    assert first_round.lengths_k == (13, 10, 0, 13)


@pytest.mark.parametrize("fault", ["a call is missing", "a call is there twice", "one key too few", "another layout"])
def test_check_plan_finds_faults(fault):
    """Negative control: a plan that is wrong in one place."""
    layout = worked_example()
    plan = Geometry(layout).plan(2)
    causal, first, second = plan.calls
    if fault == "a call is missing":
        plan = Plan((causal, first))
    elif fault == "a call is there twice":
        plan = Plan((causal, first, second, second))
    elif fault == "one key too few":
        plan = Plan((causal, first, replace(second, lengths_k=(3,))))
    else:
        layout = Layout.from_ids([1] * layout.num_tokens, TAG)
    with pytest.raises(AssertionError, match=r"node|queries"):
        check_plan(plan, layout)


def document_of(num_blocks: int, num_paths: int = 4) -> Layout:
    ids = [1] * 50
    for _ in range(num_blocks):
        ids += [TAG.parallel, TAG.goal, TAG.end_goal]
        ids += ([TAG.path] + [1] * 30 + [TAG.end_path]) * num_paths
        ids += [TAG.conclusion, 1, TAG.end_conclusion, TAG.end_parallel] + [1] * 20
    return Layout.from_ids(ids, TAG)


def test_a_plan_is_linear_in_blocks():
    """Twice the blocks: one more level, and twice the rectangles and sequences."""
    small, large = Geometry(document_of(64)), Geometry(document_of(128))
    assert large.max_levels == small.max_levels + 1
    for name, a, b in [
        ("rectangles", sum(map(len, small.rounds)), sum(map(len, large.rounds))),
        ("sequences", len(small.plan(3).calls[0].lengths_q), len(large.plan(3).calls[0].lengths_q)),
    ]:
        assert b <= 2 * a + 2, name


def test_a_block_of_a_thousand_paths_takes_one_rectangle():
    geometry = Geometry(document_of(1, num_paths=1000))
    assert sum(map(len, geometry.rounds)) == 2
    check_plan(geometry.plan(geometry.max_levels), document_of(1, num_paths=1000))


def test_plain_text_is_one_call():
    layout = Layout.pack([Layout.from_ids([1] * n, TAG) for n in (5, 300)])
    assert Geometry(layout).max_levels == 0
    assert cost.choose_levels(Geometry(layout), HEADS, cost.CUDA) == 0


def test_the_choice_of_levels_weighs_launches_against_copies():
    geometry = Geometry(document_of(20))
    dear_launches = replace(cost.CUDA, seconds_per_launch=1.0, max_gathered=float("inf"))
    dear_copies = replace(cost.CUDA, seconds_per_launch=0.0, bytes_per_second=1e6)
    assert cost.choose_levels(geometry, HEADS, dear_launches) == 0
    chosen = cost.choose_levels(geometry, HEADS, dear_copies)
    assert chosen > 0 and geometry.num_gathered(chosen) < geometry.num_gathered(0) / 4


def test_the_choice_of_levels_keeps_the_copies_within_bounds():
    geometry = Geometry(document_of(20))
    dear_launches = replace(cost.CUDA, seconds_per_launch=1.0)
    chosen = cost.choose_levels(geometry, HEADS, dear_launches)
    assert geometry.num_gathered(chosen) <= cost.CUDA.max_gathered * geometry.num_tokens
    assert geometry.num_gathered(chosen - 1) > cost.CUDA.max_gathered * geometry.num_tokens


def test_the_estimate_by_hand():
    """One run of 8 and its document: launches, tiles and copied keys of the worked example, each alone."""
    geometry = Geometry(worked_example())
    heads = cost.Heads(num_heads=2, num_key_heads=1, width=8, num_bytes=2)
    launches = cost.CostModel(1.0, False, 128, 128, False, float("inf"), float("inf"), float("inf"))
    assert [cost.seconds(geometry, levels, heads, launches) for levels in (0, 1, 2)] == [1, 2, 3]
    sequences = replace(launches, one_launch_per_sequence=True)
    assert cost.seconds(geometry, 0, heads, sequences) == 4 + 2, "four runs, two of which see earlier keys"
    tiles = replace(launches, seconds_per_launch=0.0, tile_q=8, tile_k=8, flops_per_second=14 * 64 * 2 * 8)
    assert cost.seconds(geometry, 2, heads, tiles) == (1 + 1 + 1 + 1) + 1 * 2 + 1 * 1
    copies = replace(launches, seconds_per_launch=0.0, bytes_per_second=1.0)
    per_key = 8 * 1 * 8 * 2 + 4 * 2 * 8 * 2 + 16 * 1 * 8
    assert cost.seconds(geometry, 0, heads, copies) == (23 + 4 + 13) * per_key
    assert cost.seconds(geometry, 2, heads, copies) == (7 + 5) * 2 * (2 * 2 + 8) * 2 * 8
