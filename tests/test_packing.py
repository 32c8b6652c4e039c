"""Packing and the plan of steps, against a plain best-fit decreasing and by what must hold of every plan."""

from __future__ import annotations

import time
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.data import pack
from mvtrain.data.curriculum import as_indices, epochs, phases
from mvtrain.data.packing import Step, balance, plan_steps, rank_packs


def brute_force_best_fit(lengths, capacity):
    """Best-fit decreasing that looks at every pack for every example."""
    packs = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rooms = [capacity - sum(lengths[i] for i in members) - lengths[index] for members in packs]
        fitting = [(room, number) for number, room in enumerate(rooms) if room >= 0]
        if fitting:
            packs[min(fitting)[1]].append(index)
        else:
            packs.append([index])
    return packs


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), max_size=60))))
def test_pack_is_best_fit_decreasing(case):
    capacity, lengths = case
    packs = pack(lengths, capacity)
    assert sorted(chain(*packs)) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= capacity for members in packs)
    assert packs == brute_force_best_fit(lengths, capacity)
    # No two packs could be one.
    totals = sorted(sum(lengths[i] for i in members) for members in packs)
    assert len(totals) < 2 or totals[0] + totals[1] > capacity


def test_pack_by_hand():
    # 7 opens a pack; 6 another; 4 fits the second exactly; 3 the first exactly; 2 and 1 share a third.
    assert pack([4, 7, 2, 3, 6, 1], 10) == [[1, 3], [4, 0], [2, 5]]
    assert pack([], 10) == []
    assert pack(np.array([5, 5, 5]), 10) == [[0, 1], [2]]


def test_pack_never_cuts_or_drops():
    with pytest.raises(ValueError, match=r"example 1 has 11 tokens, a pack holds 10; .*raise the capacity to 12"):
        pack([3, 11, 12], 10)
    with pytest.raises(ValueError, match="example 2 has 0 tokens"):
        pack([3, 1, 0], 10)


def test_pack_of_many_is_quick_and_full():
    lengths = np.random.default_rng(0).lognormal(8.6, 0.8, 20_000).astype(int).clip(50, 32_768).tolist()
    start = time.perf_counter()
    packs = pack(lengths, 32_768)
    assert time.perf_counter() - start < 2  # a tenth of this on an idle machine; the brute force takes minutes
    assert sum(lengths) / (len(packs) * 32_768) > 0.98
    assert sorted(chain(*packs)) == list(range(20_000))


LENGTHS = np.random.default_rng(3).integers(1, 100, 200).tolist()
"""60 sequential examples, then 140 parallel ones."""


def curriculum():
    return as_indices(phases(60, 140), 60)


@settings(max_examples=30, deadline=None)
@given(packs_per_step=st.integers(1, 9), seed=st.integers(0, 5), with_costs=st.booleans(), window=st.integers(1, 4))
def test_a_plan_reads_every_member_of_a_phase_once(packs_per_step, seed, with_costs, window):
    costs = [length**2 for length in LENGTHS] if with_costs else None
    steps = plan_steps(curriculum(), LENGTHS, 128, packs_per_step, seed, costs=costs, window=window)
    assert [step.phase for step in steps] == sorted(step.phase for step in steps)
    for number, phase in enumerate(curriculum()):
        mine = [step for step in steps if step.phase == number]
        assert Counter(i for step in mine for members in step.packs for i in members) == Counter(phase)
        assert all(len(step.packs) == packs_per_step for step in mine[:-1])
        assert 1 <= len(mine[-1].packs) <= packs_per_step
    for step in steps:
        totals = [sum(LENGTHS[i] for i in members) for members in step.packs]
        assert max(totals) <= 128 and sum(totals) == step.num_tokens


def test_packs_do_not_depend_on_the_size_of_a_step():
    plans = [plan_steps(curriculum(), LENGTHS, 128, n, seed=5) for n in (1, 2, 4, 7)]
    in_order = [[(step.phase, members) for step in plan for members in step.packs] for plan in plans]
    assert in_order[1:] == in_order[:1] * 3


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_step_reads_the_same_packs_on_any_number_of_ranks(world_size):
    for step in plan_steps(curriculum(), LENGTHS, 128, 4):
        shares = [rank_packs(step, rank, world_size, packs_per_rank=4 // world_size) for rank in range(world_size)]
        assert {len(share) for share in shares} == {4 // world_size}
        dealt = [members for moment in zip(*shares, strict=True) for members in moment]
        assert dealt == [*step.packs, *[()] * (4 - len(step.packs))]


def test_rank_packs_by_hand():
    step = Step(0, ((1,), (2,), (3, 4), (5,), (6,)), 10)
    assert [rank_packs(step, rank, 2) for rank in range(2)] == [[(1,), (3, 4), (6,)], [(2,), (5,), ()]]
    assert rank_packs(step, 1, 2, packs_per_rank=4) == [(2,), (5,), (), ()]
    with pytest.raises(ValueError, match="5 packs needs 3 a rank on 2 ranks, not 2"):
        rank_packs(step, 0, 2, packs_per_rank=2)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        rank_packs(step, 2, 2)


def test_order_comes_from_seed_and_phase():
    plan = plan_steps(curriculum(), LENGTHS, 128, 4, seed=1)
    assert plan == plan_steps(curriculum(), LENGTHS, 128, 4, seed=1)
    assert plan != plan_steps(curriculum(), LENGTHS, 128, 4, seed=2)
    # Phases 0 and 1 hold the same packs, yet in another order.
    first, second = ([m for step in plan if step.phase == n for m in step.packs] for n in (0, 1))
    assert sorted(map(sorted, first)) == sorted(map(sorted, second)) and first != second


def test_resume_in_the_middle_of_a_phase_is_a_slice():
    plan = plan_steps(curriculum(), LENGTHS, 128, 4)
    half = len([step for step in plan if step.phase < 3]) + 2
    assert plan[half - 1].phase == plan[half].phase == 3, "the cut is inside a phase"
    again = plan_steps(curriculum(), LENGTHS, 128, 4)[half:]
    assert plan[:half] + again == plan
    read = Counter(i for step in plan[:half] + again if step.phase == 3 for members in step.packs for i in members)
    assert read == Counter(curriculum()[3])


def test_a_token_budget_ends_the_plan_at_the_first_step_that_reaches_it():
    endless = plan_steps(epochs(200, None), LENGTHS, 128, 4, max_tokens=50_000)
    total = sum(step.num_tokens for step in endless)
    assert total >= 50_000 > total - endless[-1].num_tokens
    assert endless[-1].phase >= 3, "one epoch has far fewer tokens than the budget"
    whole = plan_steps(epochs(200, 10), LENGTHS, 128, 4)
    assert whole[: len(endless)] == endless and len(whole) > len(endless)
    assert sum(step.num_tokens for step in plan_steps(epochs(200, 1), LENGTHS, 128, 4, max_tokens=10**9)) == sum(
        LENGTHS
    )


def test_costs_bring_packs_of_like_cost_together():
    costs = np.random.default_rng(9).integers(1, 10_000, 200).tolist()

    def spread(plan):
        """Mean over steps of the share of time that ranks work, if each pack runs on a rank of its own."""
        sums = [[sum(costs[i] for i in members) for members in step.packs] for step in plan]
        return np.mean([np.mean(packs) / np.max(packs) for packs in sums])

    plain = plan_steps(epochs(200, 2), LENGTHS, 128, 4)
    alike = plan_steps(epochs(200, 2), LENGTHS, 128, 4, costs=costs)
    assert spread(alike) > spread(plain) + 0.2
    in_plan = [Counter(members for step in plan for members in step.packs) for plan in (plain, alike)]
    assert in_plan[0] == in_plan[1]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="example 5 has 99 tokens, a pack holds 50"):
        plan_steps([[1, 5]], [1, 2, 3, 4, 5, 99], 50, 2)
    with pytest.raises(ValueError, match="packs_per_step must be at least 1, not 0"):
        plan_steps([[0]], [1], 50, 0)
    with pytest.raises(ValueError, match="max_tokens must be at least 1, not 0"):
        plan_steps([[0]], [1], 50, 1, max_tokens=0)


def test_balance_by_hand():
    """Two ranks; packs of 6 and 2, then 4 and 4: the first pair takes 6, the second 4, of which 16 / 20 is work."""
    step = Step(0, ((0,), (1,), (2, 3), (4,)), 1)
    costs = [6, 2, 1, 3, 4]
    assert balance(step, costs, world_size=2) == 16 / 20
    assert balance(step, costs, world_size=1) == 1.0
    assert balance(step, costs, world_size=2, packs_per_micro_step=2) == 16 / (2 * 10)
    assert balance(Step(0, ((0,),), 1), costs, world_size=4) == 1 / 4, "three ranks wait"


@pytest.mark.parametrize("world_size, least", [(8, 0.85), (64, 0.8)])
def test_order_by_cost_keeps_ranks_busy(world_size, least):
    """Packs equally full of tokens but not of visible pairs; in drawn order (the control) ranks wait far longer."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(8.5, 0.6, 20000), 200, 32768).astype(int).tolist()
    costs = [n * (n + 1) // 2 for n in lengths]

    def mean_balance(costs_for_order) -> float:
        steps = plan_steps([range(len(lengths))], lengths, 32768, world_size, costs=costs_for_order)
        return float(np.mean([balance(step, costs, world_size) for step in steps[:-1]]))

    ordered, drawn = mean_balance(costs), mean_balance(None)
    assert ordered > least and ordered > drawn + 0.25, (ordered, drawn)
