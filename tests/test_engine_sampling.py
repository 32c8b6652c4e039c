"""Sampling: the right distribution, the same noise whatever the batch, never a padding row."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.filters import kept_tokens
from mvtrain.engine.sampling import Sampler, uniform_noise, visible_tokens
from mvtrain.engine.script import ScriptedSampler
from tests.engine_models import TOKENIZER, WritesBlocks
from tests.tiny import tiny_model, tiny_tokenizer


def branches(count: int, **params) -> list[SimpleNamespace]:
    request = SimpleNamespace(sample=0, params=SamplingParams(**params))
    return [SimpleNamespace(request=request, lineage=(0, 1), num_sampled=k) for k in range(count)]


def frequencies(logits: list[float], count: int = 4000, **params) -> dict[int, float]:
    rows = torch.tensor([logits]).expand(count, -1)
    chosen = Sampler(len(logits)).choose(rows, branches(count, **params))
    return {token: n / count for token, n in Counter(token for token, *_ in chosen).items()}


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert frequencies(logits, temperature=1.0) == pytest.approx({0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}, abs=0.03)
    hot = frequencies(logits, temperature=2.0)  # probabilities to the power of 1/2
    weights = [p**0.5 for p in (0.5, 0.3, 0.15, 0.05)]
    assert hot == pytest.approx({k: w / sum(weights) for k, w in enumerate(weights)}, abs=0.03)
    assert frequencies(logits, temperature=1.0, top_k=2) == pytest.approx({0: 0.625, 1: 0.375}, abs=0.03)
    # 0.5 + 0.3 reaches 0.7, so the third token is out
    assert frequencies(logits, temperature=1.0, top_p=0.7) == pytest.approx({0: 0.625, 1: 0.375}, abs=0.03)
    assert frequencies(logits, temperature=1.0, top_p=1e-9) == {0: 1.0}
    assert frequencies(logits, count=50, temperature=1e-300) == {0: 1.0}
    assert frequencies(logits, count=50) == {0: 1.0}


def test_noise_depends_on_seed_lineage_and_index_only():
    request = SimpleNamespace(sample=0, params=SamplingParams(seed=3))
    keys = [((), 0), ((), 1), ((0, 1), 0), ((0, 2), 0), ((1, 1), 0), ((0, 1, 0, 1), 0)]
    values = [uniform_noise(SimpleNamespace(request=request, lineage=l, num_sampled=k)) for l, k in keys]
    assert len(set(values)) == len(keys) and all(0 <= value < 1 for value in values)
    other = SimpleNamespace(sample=0, params=SamplingParams(seed=3, temperature=0.7))
    assert uniform_noise(SimpleNamespace(request=other, lineage=(0, 1), num_sampled=0)) == values[2]
    other = SimpleNamespace(sample=0, params=SamplingParams(seed=4))
    assert uniform_noise(SimpleNamespace(request=other, lineage=(0, 1), num_sampled=0)) not in values
    many = torch.tensor([uniform_noise(branch) for branch in branches(4000)])
    assert abs(many.mean() - 0.5) < 0.02 and abs(many.var() - 1 / 12) < 0.01


def test_log_probabilities_are_the_models_at_temperature_one():
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = Sampler(8).choose(logits, branches(3, temperature=0.3, top_k=2))
    for row, (token, logprob, _) in enumerate(chosen):
        assert logprob == pytest.approx(logits[row, :8].log_softmax(-1)[token].item(), abs=1e-12)


def test_padding_rows_of_the_embedding_are_never_chosen():
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer) + 64)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 50 * model.lm_head.weight[: len(tokenizer)][:64]
    engine = Engine(model, tokenizer)
    params = [SamplingParams(max_tokens=20, temperature=t, seed=s) for t in (0.0, 3.0) for s in range(4)]
    for completion in engine.generate([[k] for k in range(8)], params):
        assert max(completion.token_ids) < len(tokenizer)


def test_every_end_of_text_id_ends_an_answer():
    tokenizer = tiny_tokenizer()
    model = tiny_model()
    (plain,) = Engine(model, tokenizer).generate([[1]], SamplingParams(max_tokens=10))
    assert plain.finish_reason == "length"
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, plain.token_ids[4]]
    (ended,) = Engine(model, tokenizer).generate([[1]], SamplingParams(max_tokens=10))
    first = plain.token_ids.index(plain.token_ids[4])
    assert ended.finish_reason == "stop" and ended.token_ids == plain.token_ids[: first + 1]
    assert ended.text == tokenizer.decode(plain.token_ids[:first])


@pytest.mark.parametrize("seed", range(8))
def test_the_same_tokens_are_kept_as_by_transformers(seed):
    """Top-k, top-p and min-p together, each vocabulary once smaller and once larger than what is sorted at first."""
    rng = torch.Generator().manual_seed(seed)
    size = (300, 5000)[seed % 2]
    logits = 3 * torch.randn(6, size, generator=rng, dtype=torch.float64)
    settings = [(50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (200, 0.7, 0.1), (0, 0.999, 0.0), (2000, 0.95, 0.001)]
    params = [SamplingParams(temperature=0.8, top_k=k, top_p=p, min_p=m) for k, p, m in settings]
    kept = kept_tokens(logits / 0.8, params)
    for row, (top_k, top_p, min_p) in enumerate(settings):
        warpers = [TemperatureLogitsWarper(0.8)]
        warpers += [TopKLogitsWarper(top_k)] if top_k else []
        warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
        warpers += [MinPLogitsWarper(min_p)] if min_p else []
        expected = LogitsProcessorList(warpers)(None, logits[row : row + 1])[0] > float("-inf")
        assert torch.equal(kept[row], expected), (row, kept[row].sum(), expected.sum())
        assert 0 < kept[row].sum() < size


def test_ties_at_the_threshold_are_kept_whatever_their_order():
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    assert kept_tokens(logits, [SamplingParams(temperature=1, top_k=2)]).tolist() == [[True] * 4 + [False]]
    assert kept_tokens(logits, [SamplingParams(temperature=1, top_p=0.6)]).tolist() == [[True] * 4 + [False]]
    assert kept_tokens(logits, [SamplingParams(temperature=1)]) is None


def test_the_repetition_penalty_is_that_of_transformers():
    model, tokenizer = tiny_model(dtype=torch.float64), tiny_tokenizer()
    prompt = list(range(30, 60))
    expected = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 30), do_sample=False, max_new_tokens=40,
        repetition_penalty=1.3,
    )[0, 30:].tolist()  # fmt: skip
    params = SamplingParams(max_tokens=40, repetition_penalty=1.3, parallel=False)
    (completion,) = Engine(model, tokenizer).generate([prompt], params)
    assert completion.token_ids == expected
    plain = Engine(model, tokenizer).generate([prompt], SamplingParams(max_tokens=40, parallel=False))
    assert plain[0].token_ids != expected


def test_a_path_is_penalised_for_what_it_sees_and_not_for_its_sibling():
    engine = Engine(tiny_model(), TOKENIZER, sampler=WritesBlocks(len(TOKENIZER)))
    checked_pairs = 0
    choose = engine.sampler.choose

    def spied(logits_NV, branches):
        nonlocal checked_pairs
        for branch in branches:
            seen = visible_tokens(branch)
            assert set(branch.tokens) <= seen and set(branch.request.prompt) <= seen
            for other in branch.request.branches:
                if other.node in branch.joined:
                    assert set(other.tokens) <= seen
                elif (
                    other.parent is branch.parent and other is not branch and other.lineage[:-1] == branch.lineage[:-1]
                ):
                    checked_pairs += not set(other.tokens) <= seen
        return choose(logits_NV, branches)

    engine.sampler.choose = spied
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=80, temperature=1.0, seed=3))
    assert checked_pairs > 0, "a sibling wrote tokens that the path does not see"


def test_top_log_probabilities_are_reported_where_asked_for():
    engine = Engine(tiny_model(dtype=torch.float64), tiny_tokenizer())
    params = [SamplingParams(max_tokens=6, num_logprobs=3), SamplingParams(max_tokens=6)]
    asked, plain = engine.generate([[1, 2], [1, 2]], params)
    assert asked.token_ids == plain.token_ids and plain.top_logprobs == [()] * 6
    for token, logprob, top in zip(asked.token_ids, asked.logprobs, asked.top_logprobs, strict=True):
        assert len(top) == 3 and top[0][0] == token and top[0][1] == pytest.approx(logprob, abs=1e-12)
        assert top[0][1] >= top[1][1] >= top[2][1]


def test_stop_tokens_count_as_end_of_text():
    engine = Engine(tiny_model(), tiny_tokenizer())
    (plain,) = engine.generate([[1]], SamplingParams(max_tokens=12))
    stop = plain.token_ids[5]
    (ended,) = engine.generate([[1]], SamplingParams(max_tokens=12, stop_token_ids=(stop,)))
    first = plain.token_ids.index(stop)
    assert ended.finish_reason == "stop" and ended.token_ids == plain.token_ids[: first + 1]
    assert ended.text == engine.markup.decode(plain.token_ids[:first])


def scripted(script: dict[tuple[int, ...], str], **params):
    ids = {lineage: TOKENIZER(text)["input_ids"] for lineage, text in script.items()}
    engine = Engine(tiny_model(), TOKENIZER, sampler=ScriptedSampler(ids, len(TOKENIZER), TOKENIZER.eos_token_id))
    return engine.generate([[1, 2]], SamplingParams(**params))[0]


def test_stop_strings_end_an_answer_and_are_not_part_of_it():
    completion = scripted({(): "one two DONE three"}, stop="DONE")
    assert completion.finish_reason == "stop" and completion.text == "one two "
    assert completion.num_generated == len("one two DONE") and completion.problems == []
    assert scripted({(): "one two"}, stop=("DONE", "two!")).text == "one two"
    assert scripted({(): "aab"}, stop=("ab", "aab")).text == ""
    # Two bytes of one character come as two tokens.
    assert scripted({(): "né à la fin"}, stop="à").text == "né "


def test_a_stop_string_ends_a_path_like_end_of_text_and_forced_text_has_none():
    two = "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"
    script = {(): two + "c</Conclusion></Parallel>x", (0, 0): "alpha STOP more", (0, 1): "beta</Path>"}
    completion = scripted(script, stop="STOP")
    assert "alpha STOP</Path>" in completion.text and "beta</Path>" in completion.text
    assert completion.problems == ["path 1 ended by a stop string"] and completion.num_forced_closes == 1
    assert [branch.ended_by for branch in completion.branches] == ["", "stop", "end_path"]
    newline = scripted(script | {(0, 0): "alpha</Path>"}, stop="\n")
    assert newline.problems == [] and newline.text.endswith("x"), "the newlines of openings and of the join are forced"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_p": 2}, r"min_p = 2, expected in \[0, 1\]"),
        ({"stop": ("",)}, "strings of at least one character"),
        ({"n": 0}, "n = 0, expected at least 1"),
        ({"max_path_tokens": 0}, "max_path_tokens = 0"),
        ({"max_depth": 65}, "0 to 64"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"repetition_penalty": 0}, "above 0"),
        ({"top_p": 0, "n": 0}, "top_p = 0, .*; n = 0"),
    ],
)
def test_values_out_of_range_are_all_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**wrong)
