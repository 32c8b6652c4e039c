"""The engine against a full forward pass under the layout, against transformers, and against itself."""

from __future__ import annotations

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.engine.verification import masked_logprobs, training_logprobs, verify_generation, verify_trace
from mvtrain.grammar import Block, Outline, Path, Trace, walk
from mvtrain.layout import Layout
from tests.engine_models import TAGS, TOKENIZER, WritesBlocks, random_trace
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

SCHEMES = ("isolated", "original")
EXACT = 1e-10


def engine(family: str = "qwen2", dtype: torch.dtype = torch.float64, **settings) -> Engine:
    return Engine(tiny_model(family, dtype=dtype), TOKENIZER, **settings)


def scripted(trace: Trace, scheme: str = "isolated", **settings) -> Engine:
    sampler = ScriptedSampler(write_script(trace, TOKENIZER), len(TOKENIZER), TOKENIZER.eos_token_id)
    return engine(scheme=scheme, sampler=sampler, **settings)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_forced_traces_get_the_log_probabilities_of_a_full_pass(family, scheme):
    traces = [random_trace(seed) for seed in (0, 3)]
    assert max(depth for trace in traces for _, depth in walk(trace)) >= 2
    subject = engine(family, scheme=scheme)
    for seed, trace in enumerate(traces):
        comparison = verify_trace(subject, f"Question {seed}?", trace)
        assert comparison.num_sampled > 10 and comparison.num_blocks > 0
        assert comparison.max_difference < EXACT, comparison
        assert comparison.ok, comparison


@pytest.mark.parametrize("scheme", SCHEMES)
def test_float32_stays_within_rounding(scheme):
    comparison = verify_trace(engine(dtype=torch.float32, scheme=scheme), "Why?", random_trace(3))
    assert comparison.ok and comparison.max_difference < 1e-4, comparison


@pytest.mark.parametrize("scheme", SCHEMES)
def test_positions_are_exactly_the_layouts_and_the_text_is_the_trace(scheme):
    longest = 0
    for seed in range(6):
        trace = random_trace(seed)
        (completion,) = scripted(trace, scheme, dtype=torch.float32).generate(
            [[1, 2, 3]], SamplingParams(max_tokens=2000, max_total_tokens=9000)
        )
        # The layout of the bare tokens: nothing that the engine says about itself goes in.
        layout = Layout.from_ids([1, 2, 3, *completion.token_ids], TAGS, scheme)
        assert completion.position_ids == layout.position_ids[3:].tolist()
        assert completion.trace == trace and completion.problems == []
        assert completion.finish_reason == "stop"
        assert completion.parallelism == completion.num_generated / completion.critical_path
        assert len(completion.num_path_tokens) == sum(len(block.paths) for block, _ in walk(trace))
        longest = max(longest, completion.parallelism)
    assert longest > 1.5


def test_forward_passes_are_at_most_the_critical_path_plus_prefill():
    for seed in range(3):
        subject = scripted(random_trace(seed), dtype=torch.float32)
        (completion,) = subject.generate([[k % 200 for k in range(599)]], SamplingParams(max_tokens=2000))
        num_prefill = 2  # 599 tokens in chunks of 512
        assert completion.num_passes <= completion.critical_path + num_prefill
    (completion,) = scripted(Trace(("abc",))).generate([[1]])
    assert completion.num_passes == completion.critical_path == completion.num_generated


def test_hand_worked_positions_of_both_schemes():
    trace = Trace((Block((Outline("1", "a"), Outline("2", "b")), (Path("1", ("xx",)), Path("2", ("yyyy",))), "c"),))
    positions = {}
    for scheme in SCHEMES:
        (completion,) = scripted(trace, scheme).generate([[1]])
        fork = completion.token_ids.index(TAGS.end_goal)
        positions[scheme] = [position - 1 - fork for position in completion.position_ids[fork:]]
    # </Goal> | \n <Path> \n 1 : _ x x \n </Path> | \n <Path> \n 2 : _ y y y y \n </Path> | \n <Conclusion>
    wanted = [0, *range(1, 11), *range(1, 13), 13, 14]
    assert positions["isolated"][: len(wanted)] == wanted
    # </Goal> \n | <Path> \n 1 : _ x x \n </Path> \n | <Path> \n 2 : _ y y y y \n </Path> \n | <Conclusion>
    wanted = [0, 1, *range(1, 10), 10, *range(1, 12), 12, 12]
    assert positions["original"][: len(wanted)] == wanted


def test_a_wrong_position_or_mask_does_not_verify(monkeypatch):
    trace = random_trace(5)
    assert verify_trace(engine(), "Why?", trace).ok
    subject = engine()
    mask = subject.cache._mask
    monkeypatch.setattr(subject.cache, "_mask", lambda *args: torch.zeros_like(mask(*args)))
    comparison = verify_trace(subject, "Why?", trace)
    assert not comparison.ok and comparison.max_difference > 1e-2 and comparison.num_wrong_positions == 0

    subject = engine()
    admit = subject.scheduler._admit

    def shift_positions():
        admit()
        for request in subject.scheduler.running:
            for branch in request.branches[2:]:
                if branch.num_sampled == 1:
                    branch.position += 1

    monkeypatch.setattr(subject.scheduler, "_admit", shift_positions)
    comparison = verify_trace(subject, "Why?", trace)
    assert not comparison.ok and comparison.max_difference > 1e-3 and comparison.num_wrong_positions > 0


def test_a_path_does_not_see_its_sibling_and_the_conclusion_sees_both():
    def answer(first: str) -> list[tuple[int, float | None]]:
        paths = (Path("1", (first,)), Path("2", ("second",)))
        trace = Trace((Block((Outline("1", "a"), Outline("2", "b")), paths, "so"),))
        (completion,) = scripted(trace).generate([[1, 2]])
        return list(zip(completion.token_ids, completion.logprobs, strict=True))

    one, other = answer("first"), answer("tsrif")
    assert len(one) == len(other)
    last_path = max(k for k, (id, _) in enumerate(one) if id == TAGS.path)
    conclusion = next(k for k, (id, _) in enumerate(one) if id == TAGS.conclusion)
    assert one[last_path:conclusion] == other[last_path:conclusion]
    assert one[conclusion + 1][1] != other[conclusion + 1][1]


def test_greedy_tokens_are_the_argmax_of_full_passes_token_by_token():
    subject = engine(dtype=torch.float64)
    prompt = TOKENIZER("abc")["input_ids"]
    (completion,) = subject.generate([prompt], SamplingParams(max_tokens=25))
    ids = list(prompt)
    for token in completion.token_ids:
        layout = Layout.from_ids([-1] * len(ids), TAGS)
        logprobs = training_logprobs(subject, ids, layout, torch.tensor([len(ids) - 1]))
        assert logprobs.argmax().item() == token
        ids.append(token)
    assert completion.num_generated == 25


@pytest.mark.parametrize("scheme", SCHEMES)
def test_free_greedy_tokens_inside_nested_blocks_are_the_argmax_of_a_full_pass(scheme):
    subject = engine(scheme=scheme, sampler=WritesBlocks(len(TOKENIZER)))
    comparison = verify_generation(subject, "Go on.", SamplingParams(max_tokens=120))
    assert comparison.num_blocks > 3 and comparison.num_paths > 6
    assert comparison.ok and comparison.max_difference < EXACT, comparison


def test_a_batch_of_eight_gives_what_eight_batches_of_one_give():
    params = [SamplingParams(max_tokens=60, temperature=t, top_p=0.9, seed=seed) for seed, t in enumerate([0, 1.0] * 4)]
    prompts = [f"Question {'x' * seed * 20}{seed}" for seed in range(8)]
    together = engine(sampler=WritesBlocks(len(TOKENIZER))).generate(prompts, params)
    crowded = engine(sampler=WritesBlocks(len(TOKENIZER)), max_batch=3).generate(prompts, params)
    one_by_one = engine(sampler=WritesBlocks(len(TOKENIZER)))
    for prompt, p, completion, other in zip(prompts, params, together, crowded, strict=True):
        (alone,) = one_by_one.generate([prompt], p)
        assert completion.token_ids == other.token_ids == alone.token_ids
        assert completion.position_ids == alone.position_ids
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-10)
    assert len({tuple(completion.token_ids) for completion in together}) == 8
    assert min(completion.parallelism for completion in together) > 1.1


def test_without_blocks_the_engine_is_transformers_generate():
    for family in FAMILIES:
        subject = engine(family)
        prompt = list(range(5, 40))
        expected = subject.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, 35), do_sample=False, max_new_tokens=30
        )[0, 35:].tolist()
        (completion,) = subject.generate([prompt], SamplingParams(max_tokens=30, parallel=False))
        assert completion.token_ids == expected
        assert subject.model.config._attn_implementation == "sdpa"  # it was given back


def test_separators_of_siblings_are_the_only_difference_to_training_in_the_original_scheme():
    paths = (Path("1", ("a",)), Path("2", ("b",)))
    trace = Trace((Block((Outline("1", ""), Outline("2", "")), paths, "c"), "d"))
    comparison = verify_trace(engine(scheme="original"), "Why?", trace)
    assert comparison.max_difference < EXACT
    assert comparison.max_difference_to_training > 1e-4  # path 2 sees the newline after path 1 in training
    single = Trace((Block(trace.parts[0].outlines[:1], paths[:1], "c"), "d"))
    assert verify_trace(engine(scheme="original"), "Why?", single).max_difference_to_training < EXACT


def test_both_full_passes_agree():
    subject = engine()
    ids = list(range(20))
    layout, rows = Layout.from_ids(ids, TAGS), torch.arange(20)
    dense = masked_logprobs(subject, ids, layout, layout.dense_mask(), rows)
    assert (training_logprobs(subject, ids, layout, rows) - dense).abs().max() < EXACT


def test_long_prompts_in_chunks_and_a_growing_cache():
    subject = engine(dtype=torch.float64)
    comparison = verify_generation(subject, [k % 200 for k in range(1300)], SamplingParams(max_tokens=10))
    assert comparison.ok and comparison.max_difference < EXACT
    assert subject.cache.node_RS.shape[1] == 2048


def test_progress_is_told_and_the_last_call_says_that_all_is_done():
    calls = []
    engine().generate([[1], [2]], SamplingParams(max_tokens=3), progress=lambda *call: calls.append(call))
    assert calls == [(0, 2, 2), (0, 2, 4), (2, 2, 6)]


def test_what_users_get_wrong():
    subject = engine()
    with pytest.raises(ValueError, match="prompt 2: a prompt of 0 tokens"):
        subject.generate([[1], []])
    with pytest.raises(ValueError, match="prompt 1: token id 999999"):
        subject.generate([[999999]])
    with pytest.raises(ValueError, match="a list of prompts"):
        subject.generate("why?")
    with pytest.raises(ValueError, match="2 prompts, but 1 sampling"):
        subject.generate([[1], [2]], [SamplingParams()])
    with pytest.raises(ValueError, match="top_p = 0, expected in"):
        SamplingParams(top_p=0)
    with pytest.raises(ValueError, match="scheme 'causal' runs no paths"):
        Engine(tiny_model(), tiny_tokenizer(), scheme="causal")
    with pytest.raises(ValueError, match="unknown scheme"):
        engine(scheme="other")
    with pytest.raises(ValueError, match="mvtrain convert"):
        Engine(tiny_model(), tiny_tokenizer(with_tags=False))
    sliding = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
    with pytest.raises(ValueError, match="full attention only"):
        Engine(sliding, TOKENIZER)
    assert subject.generate([]) == []
    assert len(subject.generate([[1]], SamplingParams(max_tokens=2))) == 1  # an error leaves nothing behind
