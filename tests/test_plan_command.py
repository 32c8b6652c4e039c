"""The estimate of memory and `mvtrain plan`: values worked out by hand."""

from __future__ import annotations

import json

import pytest

from mvtrain.cli import main
from mvtrain.train.batching import Batching
from mvtrain.train.config import DataConfig, TrainConfig
from mvtrain.train.estimate import ModelSize, estimate, host_bytes
from mvtrain.train.flops import step_flops
from mvtrain.train.plan import make_plan
from tests.distributed.runs import parse, write_recipe
from tests.tiny import tiny_model

SIZE = ModelSize(
    parameters=1000, head=100, layer=50, num_layers=2, hidden=10, kv_width=5, intermediate=20, vocab=10
)  # fmt: skip


def parts(stage: int, ranks: int, zero: dict | None = None, **changes) -> dict[str, int]:
    values = {"context": 8, "loss_chunk": 4, "model": "m", "output_dir": "o", "precision": "bf16", **changes}
    config = TrainConfig.model_construct(data=DataConfig.model_construct(), **values)
    settings = {"zero_optimization": {"stage": stage, **(zero or {})}}
    return estimate(SIZE, config, Batching.of(config, ranks), settings)


def test_zero_stages_divide_what_they_say():
    by_stage = [parts(stage, 4) for stage in range(4)]
    assert [e["optimizer"] for e in by_stage] == [12_000, 3_000, 3_000, 3_000]
    assert [e["parameters"] for e in by_stage] == [2_000, 2_000, 2_000, 500 + 2 * 150]
    assert [e["gradients"] for e in by_stage] == [2_200, 2_200, 700, 700]
    assert parts(0, 4, gradient_accumulation_steps=2)["gradients"] == 6_000 + 200


def test_offloading_moves_it_to_the_host():
    zero = {"offload_optimizer": {"device": "cpu"}}
    assert parts(3, 4, zero)["optimizer"] == 0
    config = TrainConfig.model_construct(data=DataConfig.model_construct(), precision="bf16")
    settings = {"zero_optimization": {"stage": 3, **zero}}
    assert host_bytes(SIZE, config, Batching.of(config, 4), settings) == (12_000 + 4_000) // 4


def test_activations_and_logits():
    plain = parts(0, 1)
    # Per token and layer: norms 2 * 10 * 6, attention 2 * (30 + 20), MLP 2 * 80.
    assert plain["activations"] == 8 * 2 * (120 + 100 + 160)
    assert plain["logits"] == 4 * 10 * 10 + 400
    assert plain["attention"] == 8 * 4 * (30 + 10)
    assert plain["buckets"] == 0
    assert parts(0, 1, gradient_checkpointing=True)["activations"] == 8 * (2 * 20 + 380)


def test_sequence_parallelism_divides_what_grows_with_tokens():
    whole, half = parts(3, 2), parts(3, 2, sequence_parallel_size=2)
    assert half["activations"] * 2 == whole["activations"]
    assert half["parameters"] == whole["parameters"]


def test_model_size_comes_from_the_configuration(tmp_path):
    lm = tiny_model(tied=True)
    lm.config.save_pretrained(tmp_path)
    size = ModelSize.of_checkpoint(str(tmp_path))
    assert size.parameters == sum(p.numel() for p in lm.parameters())
    assert size.head == lm.lm_head.weight.numel()
    assert (size.hidden, size.kv_width, size.num_layers) == (32, 16, 2)


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, tied=True, precision="bf16")


def test_it_plans_what_training_will_do(recipe, capsys):
    assert main(["plan", str(recipe), "--gpus", "4", "--gpu-memory", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    plan = make_plan(parse(recipe), 4)
    assert report["steps"] == len(plan.steps)
    assert report["tokens"] == sum(step.num_tokens for step in plan.steps)
    assert report["packs_per_step"] == 8
    names = [row["file"].rpartition("/")[2] for row in report["configurations"]]
    assert names[0] == "cpu.json" and set(names) >= {f"zero{n}.json" for n in range(4)} | {"zero3_offload.json"}
    assert all(row["fits"] == (row["total_gib"] <= 1) for row in report["configurations"])


def test_hours_are_flops_over_what_the_gpus_do(recipe, capsys):
    flags = ["--gpus", "2", "--tokens", "13000000", "--peak-tflops", "0.001", "--mfu", "0.5", "--json"]
    assert main(["plan", str(recipe), *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    lm = tiny_model(tied=True)
    num_parameters = sum(p.numel() for p in lm.parameters())
    flops = step_flops(lm.config, num_parameters, 13_000_000, 13_000_000 * 1301 // 2)
    assert report["hours"] == pytest.approx(flops / (2 * 1e9 * 0.5) / 3600, rel=1e-3)
    assert report["steps"] == 13_000_000 // (4 * 1300)


def test_what_does_not_fit_is_said_with_what_to_try(recipe, capsys):
    assert main(["plan", str(recipe), "--gpus", "1", "--gpu-memory", "0.1"]) == 0
    text = capsys.readouterr().out
    assert "too much" in text and "fits" not in text.replace("Nothing fits", "")
    assert "gradient_checkpointing" in text


def test_data_out_of_reach_leaves_the_memory(recipe, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", str(recipe), "--gpus", "1", "--data.parallel", "nobody/nothing"]) == 0
    text = capsys.readouterr().out
    assert "steps and hours are not known" in text and "--tokens N" in text
    assert "zero3.json" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpu", "B7"], "unknown GPU 'B7'"),
        (["--contxt", "9"], "did you mean context"),
        (["--sequence_parallel_size", "3"], "groups of 3"),
    ],
)
def test_mistakes_are_explained(recipe, capsys, flags, words):
    assert main(["plan", str(recipe), "--gpus", "2", *flags]) == 2
    assert words in capsys.readouterr().err
