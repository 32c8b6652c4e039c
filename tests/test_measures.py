"""Figures of a run against hand-worked values, enumeration, and independent libraries; and their intervals."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import asdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.evaluate.intervals import (
    bca_interval,
    estimate_rate,
    mean_of_first,
    paired_difference,
    ratio_of_first_two,
    resampled_means,
    sign_flip_p_value,
    wilson_interval,
)
from mvtrain.evaluate.measures import counts_up_to, majority_scores, measure, pass_at_k, vote
from mvtrain.evaluate.records import Problem
from mvtrain.evaluate.tasks import ask
from tests.samples import make_sample, make_samples


def test_rates_by_hand():
    """Two problems, 4 samples each: 3/4 and 1/4 correct."""
    measures = measure(make_samples({"p": "++-+", "q": "?-0+"}))[0]
    assert (measures.num_problems, measures.num_samples, measures.samples_per_problem) == (2, 8, (4, 4))
    assert measures.avg.value == (0.75 + 0.25) / 2 and measures.ungradable == 0.125
    # pass@2 of p: 1 - C(1,2)/C(4,2) = 1; of q: 1 - C(3,2)/C(4,2) = 1/2
    assert {k: e.value for k, e in measures.pass_at.items()} == {1: 0.5, 2: 0.75, 4: 1.0}
    # maj of p: right for 1, 2, 4. q: "x+1" alone; then x+1 and 8 tie; then x+1, 8, 7 tie, a third of it right
    assert {k: e.value for k, e in measures.maj_at.items()} == {1: 0.5, 2: 0.5, 4: (1 + 1 / 3) / 2}
    assert measures.avg.wilson is None and measures.pass_at[4].wilson is not None


def test_figures_by_hand():
    samples = [
        make_sample("p", num_generated=30, critical_path=10, seconds=3.0),
        make_sample("q", num_generated=10, critical_path=10, num_blocks=0, seconds=2.0, well_formed=False),
        make_sample("r", num_generated=30, critical_path=20, finish_reason="length", num_forced_closes=2, seconds=1.0),
        make_sample("s", num_generated=0, critical_path=0, finish_reason="error", seconds=0.0, correct=False),
        make_sample("p", budget=5, correct=False, num_generated=999),
    ]
    m = measure(samples)[0]
    assert m.num_samples == 4 and m.avg.value == 0.75
    assert (m.generated_tokens, m.critical_path) == (17.5, 10) and m.parallelism.value == 70 / 40
    assert m.mean_parallelism.value == (3 + 1 + 1.5 + 1) / 4
    assert m.parallelism_with_prompt.value == (70 + 40) / (40 + 40)
    assert (m.well_formed.value, m.with_blocks, m.forced_close, m.truncated, m.failed) == (0.75, 0.75, 0.25, 0.25, 0.25)
    assert (m.seconds.mean, m.seconds.median) == (1.5, 1.5)
    assert (m.tokens_per_second.mean, m.tokens_per_second.median) == (15, 10)
    assert m.seconds_per_token.mean == pytest.approx((0.1 + 0.2 + 1 / 30) / 3) and m.seconds_per_token.median == 0.1
    assert json.loads(json.dumps(asdict(m)))["pass_at"]["1"]["value"] == 0.75


def test_a_problem_counts_once_however_many_samples_it_has():
    m = measure(make_samples({"p": "++++", "q": "--"}))[0]
    assert m.avg.value == 0.5 and m.samples_per_problem == (2, 4)
    assert list(m.pass_at) == [1, 2] and m.pass_at[1].value == 0.5, "k ends at the smallest number of samples"


def test_groups_are_tasks_and_modes_and_the_order_of_samples_does_not_matter():
    samples = make_samples({"p": "+-", "q": "-+"}) + make_samples({"p": "--"}, mode="sequential")
    samples += make_samples({"p": "++"}, task="other")
    found = measure(samples)
    assert [(m.task, m.mode, m.avg.value) for m in found] == [
        ("sums", "parallel", 0.5), ("sums", "sequential", 0.0), ("other", "parallel", 1.0)
    ]  # fmt: skip
    assert measure(sorted(samples, key=lambda s: -s.sample))[0] == found[0]
    with pytest.raises(ValueError, match=r"sample 1 of p .* is there twice"):
        measure([*samples, samples[1]])
    assert measure([]) == []


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_mean_over_all_subsets(correct, data):
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(itertools.combinations(correct, k))
    assert pass_at_k(len(correct), sum(correct), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_k_goes_from_one_to_n():
    assert counts_up_to(1) == [1] and counts_up_to(8) == [1, 2, 4, 8] and counts_up_to(12) == [1, 2, 4, 8, 12]
    for k in (0, 5):
        with pytest.raises(ValueError, match="k goes from 1 to 4"):
            pass_at_k(4, 2, k)
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5), "no overflow"


@given(st.lists(st.sampled_from([("7", True), ("8", False), ("9", False), (None, False)]), min_size=1, max_size=9))
def test_majority_by_counting(votes):
    """Independent: sort all answers by their count, then draw one of the most frequent at random, exactly."""
    for k, score in majority_scores(votes, range(1, len(votes) + 1)).items():
        cast = [answer for answer, _ in votes[:k] if answer is not None]
        best = [a for a in set(cast) if all(cast.count(a) >= cast.count(other) for other in cast)]
        assert score == pytest.approx(float(Fraction("7" in best, len(best)))) if best else score == 0.0


def test_equal_answers_vote_together():
    votes = [("8", False), ("1/2", True), ("8", False), ("0.5", True), (".5", True)]

    def same(a, b):
        return Fraction(a) == Fraction(b)

    assert majority_scores(votes, [5])[5] == 0.0 and majority_scores(votes, [5], same)[5] == 1.0
    assert majority_scores(votes, [3], same)[3] == 0.0 and majority_scores(votes, [4], same)[4] == 0.5
    undecided = [("x", False), ("x ", True)]
    assert majority_scores(undecided, [1, 2], lambda a, b: a.strip() == b.strip()) == {1: 0.0, 2: 1.0}
    samples = [make_sample("p", k, answer=a, correct=c) for k, (a, c) in enumerate(votes)]
    assert measure(samples)[0].maj_at[4].value == 0.0 and measure(samples, same)[0].maj_at[4].value == 0.5
    assert measure(samples)[0].agreement == "exact text" and measure(samples, same)[0].agreement == "same"


def test_options_are_voted_for_by_their_text():
    """The right option stands at another letter in each sample; all choose it, so the majority is right."""
    problem = Problem("t", "1", "How fast?", "A", "choice", ("9 m/s", "8 m/s", "7 m/s"))
    asked = [ask(problem, seed) for seed in range(8)]
    samples = [
        make_sample("1", k, kind="choice", question=question, reference=letter, answer=answer.format(letter))
        for k, ((question, letter), answer) in enumerate(
            zip(asked, ["{}", "({})", "\\text{{{}}}", "{}) 9 m/s", " {}.", "${}$", "{}", "{}"], strict=True)
        )
    ]
    assert len({letter for _, letter in asked}) > 1
    assert {vote(s) for s in samples} == {"9 m/s"}
    fixed = [make_sample("1", k, kind="choice", question=q, reference=r, answer="A") for k, (q, r) in enumerate(asked)]
    assert len({vote(s) for s in fixed}) > 1, "the same letter is not the same answer"
    assert vote(make_sample(answer="  ")) is None and vote(make_sample(answer=" 7 ")) == "7"
    assert vote(make_sample(answer="A", kind="choice", question="asked elsewhere")) == "A"


# Intervals


def test_the_bootstrap_of_a_mean_comes_near_the_normal_interval():
    scores = np.random.default_rng(3).normal(5.0, 2.0, 400)
    low, high = _interval(scores)
    half = 1.96 * scores.std() / math.sqrt(400)
    assert low == pytest.approx(scores.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize("kind", ["rate", "skewed", "ratio"])
def test_the_bootstrap_agrees_with_scipy(kind):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(5)
    if kind == "ratio":
        critical = rng.integers(100, 900, 60).astype(float)
        columns = np.stack([critical * rng.uniform(1, 2, 60), critical], axis=1)
        ours = bca_interval(columns, resampled_means(columns, 20_000), ratio_of_first_two)

        def statistic(a, b, axis=-1):
            return a.mean(axis=axis) / b.mean(axis=axis)
    else:
        scores = rng.binomial(8, 0.7, 60) / 8 if kind == "rate" else rng.exponential(1.0, 60)
        columns, ours, statistic = scores[:, None], _interval(scores), np.mean
    theirs = stats.bootstrap(
        tuple(columns.T), statistic, paired=True, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.03 * width)


def _interval(scores, resamples=20_000, seed=0):
    column = np.asarray(scores, dtype=float)[:, None]
    return bca_interval(column, resampled_means(column, resamples, seed), mean_of_first)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """40 problems with 8 samples of unequal difficulty, 400 times: 95% of 400 is 380, deviation 4.4."""
    rng = np.random.default_rng(11)
    chances = rng.beta(1.0, 1.0, (400, 40))
    scores = rng.binomial(8, chances) / 8
    covered = 0
    for k in range(400):
        low, high = _interval(scores[k], resamples=1000, seed=k)
        covered += low <= 0.5 <= high
    assert 362 <= covered <= 394
    pooled = [wilson_interval(scores[k].sum() * 8, 320) for k in range(400)]
    assert sum(low <= 0.5 <= high for low, high in pooled) < 340, "taking samples for problems is too sure of itself"


def test_means_of_resamples_have_the_moments_they_should():
    scores = np.random.default_rng(2).random((1319, 2))
    means = resampled_means(scores, 4000)
    assert means.shape == (4000, 2)
    assert means.mean(axis=0) == pytest.approx(scores.mean(axis=0), abs=1e-3)
    assert means.std(axis=0) == pytest.approx(scores.std(axis=0) / math.sqrt(1319), rel=0.05)
    assert np.corrcoef(means.T)[0, 1] == pytest.approx(np.corrcoef(scores.T)[0, 1], abs=0.06), "same rows for both"
    assert (resampled_means(scores, 50) == resampled_means(scores, 50)).all()
    assert (resampled_means(scores, 50, seed=1) != resampled_means(scores, 50)).any()


def test_intervals_where_nothing_varies():
    one = estimate_rate([1.0])
    assert (one.value, one.low, one.high) == (1.0, None, None)
    sure = estimate_rate([1.0] * 30)
    assert (sure.low, sure.high) == (1.0, 1.0)
    assert sure.wilson[0] == pytest.approx(30 / (30 + 1.959964**2)) and sure.wilson[1] == 1.0


def test_wilson_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for right, num in ((0, 30), (1, 30), (16, 30), (458, 500), (500, 500)):
        theirs = stats.binomtest(right, num).proportion_ci(method="wilson")
        assert wilson_interval(right, num) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


# Paired comparison


def enumerated_p_value(differences) -> float:
    exact = [Fraction(difference).limit_denominator(64) for difference in differences]
    flips = itertools.product((-1, 1), repeat=len(exact))
    sums = [abs(sum(sign * d for sign, d in zip(signs, exact, strict=True))) for signs in flips]
    return sum(total >= abs(sum(exact)) for total in sums) / len(sums)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(lambda a, n: a / n, st.integers(-8, 8), st.sampled_from([1, 3, 8])), min_size=1, max_size=8))
def test_the_p_value_counts_all_sign_flips(differences):
    p_value, exact = sign_flip_p_value(differences)
    assert exact and p_value == pytest.approx(enumerated_p_value(differences), abs=1e-12)


def test_with_one_sample_the_p_value_is_the_exact_sign_test():
    stats = pytest.importorskip("scipy.stats")
    for only_a, only_b in ((3, 9), (0, 6), (5, 5), (120, 160)):
        p_value, exact = sign_flip_p_value([1.0] * only_a + [-1.0] * only_b + [0.0] * 1000)
        expected = stats.binomtest(only_a, only_a + only_b).pvalue
        assert exact and p_value == pytest.approx(expected, rel=1e-9)


def test_values_that_are_no_small_fractions_are_drawn():
    differences = [math.sqrt(k) * (-1) ** (k // 3) for k in range(2, 14)]
    sums = np.abs(np.array(list(itertools.product((-1, 1), repeat=12))) @ np.abs(differences))
    expected = (sums >= abs(sum(differences)) - 1e-9).mean()
    p_value, exact = sign_flip_p_value(differences, resamples=20_000)
    assert not exact and p_value == pytest.approx(expected, abs=0.015)
    assert sign_flip_p_value([math.pi * 1e6] * 40)[0] > 0, "never 0, however rare"
    assert sign_flip_p_value([0.0, 0.0]) == (1.0, True) == sign_flip_p_value([])


def test_a_paired_difference_by_hand():
    a, b = {"p": 0.5, "q": 1.0, "only a": 1.0}, {"q": 0.5, "p": 1.0, "r": 0.0}
    same = paired_difference(a, b)
    assert (same.num_problems, same.mean_a, same.mean_b, same.difference, same.p_value) == (2, 0.75, 0.75, 0.0, 1.0)
    up = paired_difference({str(k): 0.0 for k in range(6)}, {str(k): 1.0 for k in range(6)})
    assert up.difference == 1.0 and up.p_value == 2 / 2**6 and (up.low, up.high) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no problem is common"):
        paired_difference(a, {"z": 1.0})


def test_pairing_sees_what_two_intervals_do_not():
    """b solves all that a does and 12 more of 200: the intervals of the two overlap widely, the pairs are clear."""
    solved = random.Random(0).sample(range(200), 112)
    a = {str(k): float(k in solved[:100]) for k in range(200)}
    b = {str(k): float(k in solved) for k in range(200)}
    paired, (rate_a, rate_b) = paired_difference(a, b), (estimate_rate(list(x.values())) for x in (a, b))
    assert rate_a.high > rate_b.low
    assert paired.difference == pytest.approx(0.06) and paired.low > 0 and paired.p_value == 2 / 2**12
