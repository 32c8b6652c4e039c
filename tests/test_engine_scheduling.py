"""Admission, chunked prefill, pre-emption, shared prompts, cancellation: nothing of it may change an answer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.lazy_memory import LazyTensor
from mvtrain.engine.pages import Pages
from mvtrain.engine.row_cache import CALL, cut_into_runs
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.engine.verification import RecordingSampler, compare
from tests.engine_models import EOS, TOKENIZER, WritesBlocks, checked, random_trace
from tests.tiny import tiny_model

SCHEMES = ("isolated", "original")


def engine(dtype: torch.dtype = torch.float64, **settings) -> Engine:
    settings.setdefault("sampler", WritesBlocks(len(TOKENIZER)))
    return checked(Engine(tiny_model(dtype=dtype), TOKENIZER, **settings))


def prompts(count: int, longest: int = 300) -> list[list[int]]:
    return [[(7 * k + i) % 200 for i in range(1 + longest * k // count)] for k in range(count)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pre_empted_requests_say_what_they_say_alone(scheme):
    params = [SamplingParams(max_tokens=90, temperature=t, seed=s) for s, t in enumerate([0, 1.0] * 5)]
    crowded = engine(scheme=scheme, cache_tokens=1280)
    completions = crowded.generate(prompts(10), params)
    assert crowded.scheduler.num_preemptions > 3
    assert sum(completion.num_preemptions for completion in completions) == crowded.scheduler.num_preemptions
    alone = engine(scheme=scheme)
    for prompt, p, completion in zip(prompts(10), params, completions, strict=True):
        (other,) = alone.generate([prompt], p)
        assert completion.token_ids == other.token_ids and completion.position_ids == other.position_ids
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-10)
        assert other.num_preemptions == 0 and completion.parallelism > 1
    assert not crowded.cache.pages.rows and crowded.cache.pages.num_used == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_log_probabilities_stay_those_of_a_full_pass_through_batches_and_pre_emptions(scheme):
    traces = {seed: random_trace(seed) for seed in range(12)}
    subject = engine(scheme=scheme, cache_tokens=1024, max_batch=6)
    scripts = {seed: write_script(trace, TOKENIZER) for seed, trace in traces.items()}

    class Scripts(ScriptedSampler):
        def _next(self, branch):
            self.script = scripts[branch.request.params.seed]
            return super()._next(branch)

    subject.sampler = recorder = RecordingSampler(Scripts({}, len(TOKENIZER), EOS))
    params = [SamplingParams(max_tokens=900, max_total_tokens=900, seed=seed) for seed in traces]
    completions = subject.generate([[5, 6, 7 + seed] for seed in traces], params)
    assert subject.scheduler.num_preemptions > 0
    num_tokens = 0
    for request, records in recorder.records.items():
        comparison = compare(subject, request, records)
        assert comparison.max_difference < 1e-10 and comparison.ok, comparison
        num_tokens += request.num_tokens
    assert num_tokens > 2000 and max(c.parallelism for c in completions) > 1.5


def test_a_long_prompt_goes_through_beside_what_others_decode():
    subject = engine(max_batch=2)
    short, long = subject._requests([[1, 2], [k % 200 for k in range(2100)]], SamplingParams(max_tokens=30))
    subject.scheduler.prefill = 256
    passes = []
    choose = subject.scheduler.choose

    def spied():
        pieces = choose()
        passes.append({piece.row: sum(len(p.tokens) for p in pieces if p.row == piece.row) for piece in pieces})
        return pieces

    subject.scheduler.choose = spied
    for request in (short, long):
        subject.scheduler.add(request)
    with subject.runner.engine_attention():
        while subject.scheduler.has_work:
            subject.step()
    chunks = [chosen[1] for chosen in passes if chosen.get(1, 0) > 40]
    assert chunks == [256] * 8 + [52]
    assert all(0 in chosen for chosen in passes[:9]), "the short one goes on meanwhile"


@pytest.mark.parametrize("prompt_length", [1, 2, 40, 700])
def test_samples_of_a_prompt_keep_it_once_and_say_what_they_say_alone(prompt_length):
    prompt = [k % 200 for k in range(prompt_length)]
    params = SamplingParams(max_tokens=60, temperature=1.0, seed=5, n=6)
    subject = engine(max_batch=4)
    fed = []
    run = subject.runner.run
    subject.runner.run = lambda pieces: fed.append(sum(len(p.tokens) for p in pieces)) or run(pieces)
    together = subject.generate([prompt, [9, 8, 7]], params)
    assert [completion.sample for completion in together] == [*range(6)] * 2
    generated = sum(completion.num_generated for completion in together)
    assert sum(fed) <= generated + prompt_length + 6 + 3 + 6, "the prompt goes through the model once"
    assert len({tuple(completion.token_ids) for completion in together[:6]}) == 6
    alone = engine(max_batch=1)
    for sample, completion in enumerate(together[:6]):
        (request,) = [r for r in alone._requests([prompt], params) if r.sample == sample]
        request.prefix = None
        request._rewind()
        (other,) = next(f for f in alone._run([request]) if f).values()
        assert completion.token_ids == other.token_ids
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-10)
    assert not subject.cache.pages.rows
    first = engine().generate([prompt], SamplingParams(max_tokens=60, temperature=1.0, seed=5))[0]
    assert first.token_ids == together[0].token_ids, "the first of n is the only one of 1"


def test_shared_prompts_survive_pre_emption():
    params = SamplingParams(max_tokens=80, temperature=1.0, n=4)
    roomy, crowded = engine(), engine(cache_tokens=832)
    wanted = roomy.generate(prompts(4, 200), params)
    got = crowded.generate(prompts(4, 200), params)
    assert crowded.scheduler.num_preemptions > 0 and roomy.scheduler.num_preemptions == 0
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]


def test_first_come_first_served():
    subject = engine(cache_tokens=1024, max_batch=3)
    order = []
    requests = [request for prompt in prompts(8) for request in subject.add(prompt, SamplingParams(max_tokens=70))]
    with subject.runner.engine_attention():
        while subject.scheduler.has_work:
            running = [requests.index(request) for request in subject.scheduler.running]
            assert running == sorted(running), "no younger request runs while an older one waits behind it"
            waiting = [requests.index(request) for request in subject.scheduler.waiting]
            assert waiting == sorted(waiting) and (not running or not waiting or max(running) < min(waiting))
            order += [requests.index(request) for request, _ in subject.step()]
    assert sorted(order) == list(range(8))


def test_a_request_that_outgrows_the_cache_ends_and_says_so():
    subject = engine(cache_tokens=96)
    small, large = subject.generate([[1], [2] * 40], SamplingParams(max_tokens=500, parallel=False))
    assert large.finish_reason == small.finish_reason == "length"
    assert any("the KV cache has room for 96 tokens only" in problem for problem in large.problems)
    assert large.num_generated + 40 <= 97
    with pytest.raises(ValueError, match="prompt 2: a prompt of 96 tokens does not fit into a KV cache of 96"):
        subject.generate([[1], [2] * 96])
    with pytest.raises(ValueError, match="a KV cache of 3 tokens, expected at least 32"):
        engine(cache_tokens=3)


def test_cancelled_requests_leave_nothing_and_disturb_nobody():
    subject = engine(max_batch=3)
    requests = [r for prompt in prompts(6) for r in subject.add(prompt, SamplingParams(max_tokens=60, n=2))]
    finished = {}
    with subject.runner.engine_attention():
        for k in range(400):
            if k % 20 == 4 and k // 20 < len(requests):
                subject.cancel(requests[(5 * (k // 20)) % len(requests)])
            finished.update(subject.step())
    assert len(finished) == len(requests) and not subject.cache.pages.rows
    reasons = [finished[request].finish_reason for request in requests]
    assert reasons.count("cancelled") > 3 and reasons.count("length") > 3
    for request in requests:
        if finished[request].finish_reason == "length":
            alone = engine().generate([request.prompt], SamplingParams(max_tokens=60, n=2))
            assert finished[request].token_ids == alone[request.sample].token_ids
            break


def test_an_interruption_leaves_nothing():
    subject = engine()

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subject.generate(prompts(3), SamplingParams(n=2), progress=interrupt)
    assert not subject.cache.pages.rows and not subject.scheduler.has_work
    assert len(subject.generate([[1]], SamplingParams(max_tokens=2))) == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), max_size=60))
@settings(max_examples=60, deadline=None)
def test_pages_are_never_lost_and_never_given_twice(actions):
    pages = Pages(num_pages=20)
    for kind, amount in actions:
        rows = sorted(pages.rows)
        if kind == 0 or not rows:
            pages.open(rows[amount % len(rows)] if rows and amount % 2 else None)
        elif kind < 4:
            row = rows[amount % len(rows)]
            if pages.can_reserve(row, amount):
                assert len(pages.reserve(row, amount)) == amount
        else:
            free = [row for row in rows if not pages.rows[row].num_users]
            if free:
                pages.close(free[amount % len(free)])
        pages.check_integrity()
        held = [page for row in pages.rows for page in pages.rows[row].pages]
        assert len(held) == len(set(held)) and len(held) <= 20
    with pytest.raises(AssertionError, match="more than is free"):
        pages.reserve(pages.open(), 21 * pages.page_size)


def test_rows_share_a_call_where_that_is_cheaper():
    assert cut_into_runs([0, 1, 2], [1, 1, 1], [100, 90, 110]) == [(0, 3)]
    assert cut_into_runs([0, 2, 3], [1, 1, 1], [100, 90, 110]) == [(0, 1), (1, 3)], "only neighbours"
    assert cut_into_runs([0, 1], [512, 1], [1000, 1000]) == [(0, 1), (1, 2)], "a prompt goes alone"
    assert cut_into_runs([0, 1], [1, 1], [2 * CALL, 10]) == [(0, 1), (1, 2)], "and so does a long text"


def test_host_memory_is_taken_when_it_is_written_and_given_back():
    memory = LazyTensor((4, 2, 4096, 64), torch.float32)  # 2 MiB a row
    assert memory.tensor.sum() == 0
    memory.tensor[1] = 3
    memory.tensor[2] = 5
    memory.forget(1)
    assert memory.tensor[1].sum() == 0 and (memory.tensor[2] == 5).all()
    odd = LazyTensor((3, 1, 5, 7), torch.float64)
    odd.tensor[:] = 1
    odd.forget(2)
    assert odd.tensor[2].sum() == 0 and odd.tensor[:2].min() == 1
