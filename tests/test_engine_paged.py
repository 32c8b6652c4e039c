"""The engine on a paged cache, with and without graphs: on the CPU, in plain PyTorch and through the Triton kernel."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams, graphs, paged_attention, paged_cache
from mvtrain.engine.graphs import bucket_of
from mvtrain.engine.verification import verify_trace
from mvtrain.grammar import Block, Outline, Path, Trace
from tests.engine_models import TOKENIZER, WritesBlocks, checked, random_trace
from tests.soak import soak
from tests.tiny import tiny_model

PARAMS = [SamplingParams(max_tokens=70, temperature=t, seed=s, n=1 + s % 2) for s, t in enumerate([0, 1.0] * 3)]
PROMPTS = [[(7 * k + i) % 200 for i in range(1 + 60 * k)] for k in range(6)]


def engine(dtype: torch.dtype = torch.float64, **settings) -> Engine:
    settings = {"cache_tokens": 4096, "sampler": WritesBlocks(len(TOKENIZER)), **settings}
    return checked(Engine(tiny_model(dtype=dtype), TOKENIZER, **settings))


INNER = Block((Outline("1.1", ""), Outline("1.2", "")), (Path("1.1", ("ab",)), Path("1.2", ("c",))), "d")
SHORT = Trace((Block((Outline("1", "a"), Outline("2", "")), (Path("1", (INNER,)), Path("2", ("efg",))), "h"),))


@pytest.mark.parametrize("scheme", ["isolated", "original"])
@pytest.mark.parametrize("with_graphs", [False, True])
def test_a_paged_cache_gives_what_rows_give(scheme, with_graphs):
    rows = engine(scheme=scheme).generate(PROMPTS, PARAMS)
    paged = engine(scheme=scheme, paged=True, graphs=with_graphs, cache_tokens=1504)
    got = paged.generate(PROMPTS, PARAMS)
    assert paged.scheduler.num_preemptions > 0 and not paged.cache.pages.rows
    for completion, other in zip(got, rows, strict=True):
        assert completion.token_ids == other.token_ids
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-10)
    assert not with_graphs or len(paged.runner.graphs.graphs) > 3


def test_a_forced_trace_gets_the_log_probabilities_of_a_full_pass():
    for settings in ({}, {"graphs": True}):
        comparison = verify_trace(engine(paged=True, **settings), "Why?", random_trace(3))
        assert comparison.ok and comparison.max_difference < 1e-10, comparison


def test_the_whole_engine_through_the_triton_kernel(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.delitem(sys.modules, "mvtrain.engine.paged_attention_triton", raising=False)
    kernel = importlib.import_module("mvtrain.engine.paged_attention_triton")
    calls = []

    def on_gpu(q_NHD, k_PKSD, v_PKSD, work, scale):
        calls.append(work.num_splits)
        return kernel.paged_attention_on_gpu(q_NHD, k_PKSD, v_PKSD, work, scale)

    monkeypatch.setattr(paged_cache, "paged_attention", on_gpu)
    monkeypatch.setattr(paged_attention, "num_processors", lambda device: 16)
    monkeypatch.setattr(graphs, "num_processors", lambda device: 4)
    subject = Engine(tiny_model(), TOKENIZER, paged=True, graphs=True, cache_tokens=1024)
    comparison = verify_trace(subject, list(range(190)), SHORT)
    assert comparison.ok and comparison.max_difference < 1e-4, comparison
    assert max(calls) > 1, "slots were split"


@pytest.mark.parametrize("scheme", ["isolated", "original"])
def test_random_streams_leave_no_page_behind(scheme):
    counts = soak(400, "hollow", scheme, seed=3, paged=True)
    assert counts["finished"] == 400 and counts["pre-emptions"] > 0


def test_graphs_come_in_buckets_and_need_pages():
    assert bucket_of(1, 1) == (1, 32) and bucket_of(3, 33) == (4, 64) and bucket_of(256, 100) == (256, 128)
    with pytest.raises(ValueError, match="graphs need a paged KV cache"):
        engine(graphs=True)
