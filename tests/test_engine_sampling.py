"""Sampling: the right distribution, the same noise whatever the batch, never a padding row."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.sampling import Sampler, uniform_noise
from tests.tiny import tiny_model, tiny_tokenizer


def branches(count: int, **params) -> list[SimpleNamespace]:
    request = SimpleNamespace(params=SamplingParams(**params))
    return [SimpleNamespace(request=request, lineage=(0, 1), num_sampled=k) for k in range(count)]


def frequencies(logits: list[float], count: int = 4000, **params) -> dict[int, float]:
    rows = torch.tensor([logits]).expand(count, -1)
    chosen = Sampler(len(logits)).choose(rows, branches(count, **params))
    return {token: n / count for token, n in Counter(token for token, _ in chosen).items()}


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
    request = SimpleNamespace(params=SamplingParams(seed=3))
    keys = [((), 0), ((), 1), ((0, 1), 0), ((0, 2), 0), ((1, 1), 0), ((0, 1, 0, 1), 0)]
    values = [uniform_noise(SimpleNamespace(request=request, lineage=l, num_sampled=k)) for l, k in keys]
    assert len(set(values)) == len(keys) and all(0 <= value < 1 for value in values)
    other = SimpleNamespace(params=SamplingParams(seed=3, temperature=0.7))
    assert uniform_noise(SimpleNamespace(request=other, lineage=(0, 1), num_sampled=0)) == values[2]
    other = SimpleNamespace(params=SamplingParams(seed=4))
    assert uniform_noise(SimpleNamespace(request=other, lineage=(0, 1), num_sampled=0)) not in values
    many = torch.tensor([uniform_noise(branch) for branch in branches(4000)])
    assert abs(many.mean() - 0.5) < 0.02 and abs(many.var() - 1 / 12) < 0.01


def test_log_probabilities_are_the_models_at_temperature_one():
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = Sampler(8).choose(logits, branches(3, temperature=0.3, top_k=2))
    for row, (token, logprob) in enumerate(chosen):
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
