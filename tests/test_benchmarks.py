"""The benchmarks measure what they say: their forms compute the same, and their layouts have the shape asked for."""

import json
import sys

import pytest
import torch

from benchmarks import attention, collation, engine, forced_reruns, measure, train_step
from benchmarks.layouts import SHAPES, synthetic, without_blocks
from tests.samples import make_sample

CPU = torch.device("cpu")
ENGINE = ["--model", "tiny", "--batches", "1", "3", "--parallel-batches", "1", "2", "--paths", "1", "3", "--turns", "2"]
ENGINE += ["--context", "40", "--tokens", "30", "--dtype", "float32"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 300, 4097])
def test_synthetic_layouts_have_exactly_the_tokens_asked_for(num_tokens, shape):
    layout = synthetic(shape, num_tokens)
    assert layout.num_tokens == num_tokens
    if num_tokens > 4000:
        assert any(node.sees and node.sees[-1][1] < node.start for node in layout.nodes), "no second path"
        assert without_blocks(layout).documents == layout.documents


def test_all_forms_but_the_causal_ones_compute_the_same():
    layout = synthetic("nested", 1500)
    inputs = attention._inputs(1500, (4, 2, 16), CPU, torch.float64)
    q, k, v, _ = inputs
    outs = {name: form(q, k, v) for name, form in attention._forms(layout, CPU, inputs, set()).items()}
    assert set(outs) == {"causal", "causal SDPA", "auto", "gather", "merge", "dense"}
    for name in ("auto", "gather", "merge"):
        assert (outs[name] - outs["dense"]).abs().max() < 1e-10
    assert (outs["causal"] - outs["causal SDPA"]).abs().max() < 1e-10
    assert (outs["causal"] - outs["dense"]).abs().max() > 1e-3, "control: a mask makes a difference"


@pytest.mark.parametrize(
    "module, arguments, rows",
    [
        (attention, ["--lengths", "600", "--shapes", "flat", "--heads", "2,1,8", "--turns", "1"], 6),
        (collation, ["--lengths", "600", "--turns", "1"], 3),
        (engine, [*ENGINE, "--parts", "step"], 2),
        (engine, [*ENGINE, "--parts", "sequential"], 2),
        (engine, [*ENGINE, "--parts", "parallel"], 4),
        (engine, [*ENGINE, "--parts", "memory"], 3),
    ],
)
def test_one_command_writes_a_table(module, arguments, rows, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(engine, "RESULTS", tmp_path)
    monkeypatch.setattr(engine, "MEMORY", ((1, 100), (2, 70), (3, 30)))
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    threads = torch.get_num_threads()
    module.main()
    torch.set_num_threads(threads)
    (record,) = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(record["rows"]) == rows and record["machine"]["torch"] == torch.__version__
    (table,) = [path.read_text() for path in tmp_path.glob("*.md")]
    assert table.count("\n|") == rows + 2 and table in capsys.readouterr().out


def test_flops_of_a_step_by_hand():
    from mvtrain.train.model import SumOfTokenLosses
    from tests.tiny import tiny_model

    lm = tiny_model("qwen2", tied=False)
    layout = synthetic("flat", 10)
    module = SumOfTokenLosses(lm)
    matrices = sum(p.numel() for p in lm.parameters()) - lm.model.embed_tokens.weight.numel()
    assert train_step._flops(module, layout) == 6 * matrices * 10 + 12 * 8 * 4 * 2 * 55


def test_peak_memory_counts_what_was_freed():
    """Two tensors of 64 MiB at a time, one after another is dropped."""

    def action() -> None:
        x = torch.ones(2**24)
        for _ in range(3):
            x = x * 2

    assert measure.peak_mib(action, CPU) == pytest.approx(128, abs=0.1)


def test_both_forms_of_the_engine_write_the_same_number_of_tokens(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmark", *ENGINE])
    options = engine._options()
    model = engine.make_model(options, CPU)
    sequential, parallel = engine._generate(model, 2, 0, 240), engine._generate(model, 2, 4, 240)
    assert sequential.num_tokens == 2 * 240 - 2 and sequential.parallelism == 1
    assert abs(parallel.num_tokens - sequential.num_tokens) < 2 * 60, "and a few tags"
    assert 2.5 < parallel.parallelism < 4 and parallel.critical_path < 110


def test_reruns_differ_only_by_what_was_sampled_within_the_budget():
    def run(words: list[str], sampled: list[bool], budget: int | None = None):
        ends = [sum(map(len, words[: i + 1])) for i in range(len(words))]
        tokens = {
            "num_prompt": 5, "ends": ends, "positions": [5 + i for i in range(len(words))],
            "token_branches": [0] * len(words), "branches": [{"lineage": []}],
            "logprobs": [-1.0 if s else None for s in sampled],
        }  # fmt: skip
        return make_sample(response="".join(words), tokens=tokens, budget=budget)

    whole = run(list("abcdef"), [True] * 6)
    same = run(["a", "b", "c", "Answer: "], [True, True, True, False], 3)
    other = run(["a", "x", "c", "Answer: "], [True, True, True, False], 3)
    assert not forced_reruns.differs_before(same, whole, 3) and forced_reruns.differs_before(other, whole, 3)
    assert not forced_reruns.differs_before(run(list("abcxyz"), [True] * 6, 3), whole, 3), (
        "what follows is another text"
    )
