"""Accuracy against budgets: by hand, against runs of the engine at each budget, and what must be refused."""

from __future__ import annotations

import random

import pytest

from mvtrain.evaluate.budgets import budget_curve, budget_differences, tokens_within
from mvtrain.grammar import parse
from tests.samples import make_sample
from tests.test_measures import enumerated_p_value


def main_run() -> list:
    """p ends at 10 and 20 tokens, right and wrong; q at 30, right, and not at all."""
    tokens = {"num_prompt": 10, "positions": [*range(10, 20), *range(15, 20), *range(20, 40)]}
    return [
        make_sample("p", 0, critical_path=10, num_generated=15),
        make_sample("p", 1, critical_path=20, num_generated=20, correct=False),
        make_sample("q", 0, critical_path=30, num_generated=35, tokens=tokens),
        make_sample("q", 1, critical_path=40, num_generated=60, finish_reason="length", correct=False, tokens=tokens),
    ]


def test_what_is_cut_is_wrong():
    points = budget_curve(main_run(), [25, 5, 30], "wrong", max_tokens=40)
    five, twenty_five, thirty = points
    assert [p.budget for p in points] == [5, 25, 30]
    assert (five.accuracy.value, five.cut, five.critical_path) == (0.0, 1.0, 5.0)
    assert five.generated_tokens is None and five.parallelism is None, "p was kept without its tokens"
    # p: (1 + 0) / 2; q: both cut. Tokens: 15 and 20; q at 25 has positions 10..19, 15..19, 20..34: 30 tokens
    assert (twenty_five.accuracy.value, twenty_five.cut) == (0.25, 0.5)
    assert twenty_five.critical_path == (15 + 25) / 2 and twenty_five.generated_tokens == (17.5 + 30) / 2
    assert twenty_five.parallelism == (17.5 + 30) / (15 + 25)
    assert (thirty.accuracy.value, thirty.cut) == (0.5, 0.25), "an answer that ends at the budget is within it"
    assert (thirty.num_problems, thirty.num_samples, thirty.policy) == (2, 4, "wrong")


def test_forced_answers_stand_in_for_those_that_were_cut():
    opened = ["the answer was forced at the length limit"]
    forced = [
        make_sample("q", 0, budget=25, critical_path=29, num_generated=34, correct=True, problems=opened),
        make_sample("q", 1, budget=25, critical_path=27, num_generated=32, correct=False, problems=opened),
        make_sample("p", 0, budget=25, critical_path=99, num_generated=99, correct=False),  # ended by itself: not used
        make_sample("q", 1, budget=24, critical_path=99, num_generated=99, correct=True),  # another budget
    ]
    (point,) = budget_curve(main_run() + forced, [25], "forced")
    assert (point.accuracy.value, point.cut) == (0.5, 0.5)
    assert point.critical_path == (15 + 28) / 2 and point.generated_tokens == (17.5 + 33) / 2
    (wrong,) = budget_curve(main_run() + forced, [25], "wrong")
    assert wrong.accuracy.value == 0.25, "the policy decides, not the rows"
    with pytest.raises(AssertionError, match=r"sample 1 of q \(sums, parallel\) did not end within 25 tokens"):
        budget_curve(main_run() + forced[:1], [25], "forced")


def test_another_limit_may_end_a_sample_before_the_budget():
    """Cut at 12 tokens of critical path by the limit on all tokens: no budget above 12 gives it more."""
    samples = [make_sample("p", critical_path=12, num_generated=400, finish_reason="length", correct=True)]
    (wrong,) = budget_curve(samples, [20], "wrong", max_tokens=50)
    assert (wrong.accuracy.value, wrong.critical_path, wrong.generated_tokens) == (0.0, 12, 400)
    (forced,) = budget_curve(samples, [20], "forced", max_tokens=50)
    assert forced.accuracy.value == 1.0 and forced.cut == 1.0


def test_an_answer_that_the_engine_opened_did_not_end_by_itself():
    problem = "the answer was forced at the length limit"
    samples = [make_sample("p", critical_path=12, problems=[problem]), make_sample("q", critical_path=12)]
    (point,) = budget_curve(samples, [12], "wrong", max_tokens=12)
    assert point.accuracy.value == 0.5 and point.cut == 0.5


def test_budgets_that_the_run_cannot_tell_of():
    with pytest.raises(ValueError, match=r"the budget 41 is beyond the run's own limit of 40 tokens"):
        budget_curve(main_run(), [10, 41], "wrong")
    with pytest.raises(ValueError, match="beyond the run's own limit of 39"):
        budget_curve(main_run()[:2], [40], "wrong", max_tokens=39)
    (point,) = budget_curve(main_run()[:3], [1000], "wrong")
    assert point.accuracy.value == 0.75, "all ended by themselves, so more room changes nothing"
    for budgets in ([], [0], [5, -1]):
        with pytest.raises(ValueError, match="expected one or more, each at least 1"):
            budget_curve(main_run(), budgets, "wrong")
    with pytest.raises(ValueError, match="unknown policy 'none'; choose one of wrong, forced"):
        budget_curve(main_run(), [5], "none")


def test_more_budget_never_makes_the_wrong_policy_worse():
    rng = random.Random(4)
    samples = [
        make_sample(str(i), k, critical_path=rng.randrange(1, 100), correct=rng.random() < 0.6)
        for i in range(30)
        for k in range(3)
    ]
    points = budget_curve(samples, range(1, 101, 9), "wrong", resamples=50)
    values = [p.accuracy.value for p in points]
    assert values == sorted(values) and values[0] < values[-1]
    assert values[-1] == pytest.approx(sum(s.correct for s in samples) / 90)
    assert all(p.critical_path <= p.budget for p in points)
    assert [p.cut for p in points] == sorted((p.cut for p in points), reverse=True)


def test_modes_are_compared_on_the_same_problems():
    """Parallel paths end at 20 instead of 40: at a budget of 30 only they are right, at 40 both."""
    samples = []
    for i in range(6):
        samples.append(make_sample(str(i), critical_path=20, num_generated=40, correct=i > 0))
        samples.append(make_sample(str(i), mode="sequential", critical_path=40, num_generated=40, correct=True))
    at_30, at_40 = budget_differences(samples, [30, 40], "wrong", "sequential", "parallel")
    assert (at_30.budget, at_30.difference.mean_a, at_30.difference.mean_b) == (30, 0.0, 5 / 6)
    assert at_30.difference.p_value == enumerated_p_value([1.0] * 5 + [0.0]) == 2 / 2**5
    assert at_40.difference.difference == pytest.approx(-1 / 6) and at_40.difference.p_value == 1.0
    assert budget_differences(samples, [30], "wrong", "parallel", "unasked") == []
    curve = budget_curve(samples, [30, 40], "wrong")
    assert [(p.mode, p.budget) for p in curve] == [
        ("parallel", 30), ("parallel", 40), ("sequential", 30), ("sequential", 40)
    ]  # fmt: skip


TRACE = (
    "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n<Outline>\n2: b\n</Outline>\n</Goal>\n"
    "<Path>\n1: xx\n</Path>\n<Path>\n2: yyyy\n</Path>\n<Conclusion>\nc\n</Conclusion>\n</Parallel>\n</Think>\n\n"
    "Answer: \\boxed{12}"
)


def test_a_long_run_tells_what_a_run_at_the_budget_does():
    """The engine writes a trace with two paths, once at length and once under each of many limits."""
    from mvtrain.engine import Engine, SamplingParams
    from mvtrain.engine.script import ScriptedSampler, write_script
    from tests.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    sampler = ScriptedSampler(write_script(parse(TRACE), tokenizer), len(tokenizer), tokenizer.eos_token_id)
    engine = Engine(tiny_model("llama"), tokenizer, sampler=sampler)

    def run(max_tokens: int, answer_tokens: int = 0):
        params = SamplingParams(max_tokens=max_tokens, max_total_tokens=2400, answer_tokens=answer_tokens)
        completion = engine.generate(["six"], params)[0]
        return completion, make_sample(
            num_generated=completion.num_generated, critical_path=completion.critical_path,
            finish_reason=completion.finish_reason, problems=completion.problems,
            tokens={"num_prompt": len(completion.prompt_ids), "positions": completion.position_ids},
        )  # fmt: skip

    whole, sample = run(300)
    end = whole.critical_path
    assert whole.finish_reason == "stop" and whole.num_generated > end
    fork = whole.token_ids.index(engine.markup.tags.end_goal) + 1
    join = end - (whole.num_generated - whole.token_ids.index(engine.markup.tags.conclusion))
    for budget in (1, fork // 2, fork, fork + 8, join + 3, (join + end) // 2, end - 1, end, end + 1):
        (point,) = budget_curve([sample], [budget], "wrong", max_tokens=300, resamples=10)
        there, _ = run(budget)
        assert (point.cut == 0.0) == (there.finish_reason == "stop") == (budget >= end)
        if budget <= fork or budget >= join + 12:
            assert point.generated_tokens == there.num_generated and point.critical_path == there.critical_path
        else:  # within a block the engine adds tags that close it, or does not open it at all
            assert abs(tokens_within(sample, budget) - there.num_generated) <= 12
    _, forced = run(end - 1, answer_tokens=60)
    assert forced.finish_reason == "stop", "the control: its finish alone does not tell"
    assert budget_curve([forced], [end], "wrong", max_tokens=end, resamples=10)[0].cut == 1.0
