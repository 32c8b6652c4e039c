"""The engine on a GPU: its kernel, its graphs, and what it says, against plain PyTorch and the training forward."""

from __future__ import annotations

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.paged_attention import paged_attention, paged_attention_plain
from mvtrain.engine.verification import verify_trace
from tests.engine_models import TOKENIZER, WritesBlocks, random_trace
from tests.test_engine_paged_attention import CASES, case
from tests.tiny import tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPTS = [[(7 * k + i) % 200 for i in range(1 + 90 * k)] for k in range(6)]
PARAMS = [SamplingParams(max_tokens=70, temperature=t, seed=s, n=1 + s % 2) for s, t in enumerate([0, 1.0] * 3)]


def on_gpu(work):
    for name in ("page_RB", "tile_3W", "visible_NS", "seen_WC"):
        setattr(work, name, getattr(work, name).cuda())
    return work


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("groups", "width", "tile_size"), CASES)
def test_the_kernel_is_attention(groups, width, tile_size, dtype, num_splits):
    q, k, v, work, _ = case(groups, groups, width, tile_size, torch.float64)
    expected = paged_attention_plain(q, k, v, work, 0.3)
    work.num_splits = num_splits
    result = paged_attention(q.to(dtype).cuda(), k.to(dtype).cuda(), v.to(dtype).cuda(), on_gpu(work), 0.3).cpu()
    limit = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    assert (result - expected).abs().max() < limit and (result[1] == 0).all()


def generate(device: str, dtype: torch.dtype, **settings):
    model = tiny_model(dtype=dtype).to(device)
    engine = Engine(model, TOKENIZER, cache_tokens=4096, sampler=WritesBlocks(len(TOKENIZER)), **settings)
    completions = engine.generate(PROMPTS, PARAMS)
    engine.check_integrity()
    return engine, completions


def test_the_gpu_says_what_the_cpu_says():
    _, wanted = generate("cpu", torch.float64)
    _, got = generate("cuda", torch.float64, graphs=False)
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]
    for completion, other in zip(got, wanted, strict=True):
        assert completion.logprobs == pytest.approx(other.logprobs, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_graphs_say_what_launched_kernels_say(dtype):
    _, wanted = generate("cuda", dtype, graphs=False)
    engine, got = generate("cuda", dtype, graphs=True)
    assert len(engine.runner.graphs.graphs) > 3
    assert [c.token_ids for c in got] == [c.token_ids for c in wanted]


@pytest.mark.parametrize("scheme", ["isolated", "original"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_forced_trace_gets_the_log_probabilities_of_training(scheme, dtype):
    torch.backends.cuda.matmul.allow_tf32 = False
    model = tiny_model(dtype=dtype, hidden_size=64, head_dim=16).cuda()
    for graphs in (False, True):
        comparison = verify_trace(Engine(model, TOKENIZER, scheme, graphs=graphs), "Why?", random_trace(3))
        assert comparison.ok, comparison
