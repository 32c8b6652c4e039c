"""The estimate of memory and `mvtrain plan`: values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mvtrain.cli import main
from mvtrain.train.batching import Batching
from mvtrain.train.config import DataConfig, TrainConfig
from mvtrain.train.estimate import ModelSize, estimate, fullest, host_bytes
from mvtrain.train.flops import step_flops
from mvtrain.train.model import check_model
from mvtrain.train.plan import make_plan
from tests.distributed.runs import ROOT, parse, write_recipe
from tests.tiny import tiny_model

SIZE = ModelSize(
    parameters=1000, head=100, layer=50, num_layers=2, hidden=10, kv_width=5, intermediate=20, vocab=10
)  # fmt: skip


def moments(stage: int, ranks: int, zero: dict | None = None, **changes) -> dict[str, dict[str, int]]:
    values = {"context": 8, "loss_chunk": 4, "model": "m", "output_dir": "o", "precision": "bf16", **changes}
    config = TrainConfig.model_construct(data=DataConfig.model_construct(), **values)
    settings = {"zero_optimization": {"stage": stage, "reduce_bucket_size": 20, **(zero or {})}}
    return estimate(SIZE, config, Batching.of(config, ranks), settings)


def test_zero_stages_divide_what_they_say():
    by_stage = [moments(stage, 4) for stage in range(4)]
    assert [m["forward"]["optimizer"] for m in by_stage] == [12_000, 3_000, 3_000, 3_000]
    # Stage 3: its partition, and all parameters as they may stay gathered; none of them at the update.
    assert [m["forward"]["parameters"] for m in by_stage] == [2_000, 2_000, 2_000, 500 + 2_000]
    assert [m["update"]["parameters"] for m in by_stage] == [2_000, 2_000, 2_000, 500]


def test_parameters_stay_gathered_up_to_a_limit():
    limited = moments(3, 4, {"stage3_max_live_parameters": 10})
    assert limited["forward"]["parameters"] == 500 + 2 * (50 + 100)  # at least a layer and the head
    assert moments(3, 4, {"stage3_max_live_parameters": 400})["forward"]["parameters"] == 500 + 2 * 400
    assert moments(3, 1)["forward"]["parameters"] == 2_000


def test_gradients_are_there_from_backward_to_the_update():
    """Stage 1 in bf16 keeps an fp32 copy of all, stage 3 of its partition; 0 and 2 have none between steps."""
    by_stage = [moments(stage, 4) for stage in range(4)]
    assert [m["forward"]["gradients"] for m in by_stage] == [0, 4_000, 0, 1_000]
    assert [m["gradients"]["gradients"] for m in by_stage] == [2_000, 4_000 + 2_000, 1_000, 1_000]
    # The update's copy in fp32: of all gradients, none (but gathered weights), none, of the partition.
    assert [m["update"]["optimizer"] for m in by_stage] == [12_000 + 4_000, 3_000 + 2_000, 3_000, 3_000 + 1_000]
    assert moments(3, 4, {"sub_group_size": 100})["update"]["optimizer"] == 3_000 + 400
    accumulating = [moments(stage, 4, gradient_accumulation_steps=2) for stage in range(4)]
    assert [m["forward"]["gradients"] for m in accumulating] == [2_000, 6_000, 1_000, 1_000]


def test_buckets():
    by_stage = [moments(stage, 4) for stage in range(4)]
    assert [m["forward"]["buffers"] for m in by_stage] == [0, 0, 0, 2 * 20]
    assert [m["backward"]["buffers"] for m in by_stage] == [0, 0, 4 * 20, 2 * 20]
    assert moments(2, 4, {"overlap_comm": True})["backward"]["buffers"] == 2 * 4 * 20


def test_offloading_moves_it_to_the_host():
    zero = {"offload_optimizer": {"device": "cpu"}}
    assert {m["optimizer"] + m["gradients"] for m in moments(3, 4, zero).values()} == {0}
    config = TrainConfig.model_construct(data=DataConfig.model_construct(), precision="bf16")
    settings = {"zero_optimization": {"stage": 3, **zero}}
    assert host_bytes(SIZE, config, Batching.of(config, 4), settings) == (12_000 + 4_000) // 4


def test_activations_and_logits():
    plain = moments(0, 1)
    # Per token and layer: norms 2 * 10 * 6, attention 2 * (30 + 20), MLP 2 * 80.
    assert plain["forward"]["activations"] == plain["backward"]["activations"] == 8 * 2 * (120 + 100 + 160)
    assert plain["forward"]["logits"] == 4 * 10 * (2 + 4 + 4) + (4 + 2) * 100
    assert plain["backward"]["attention"] == 8 * 4 * (30 + 10)
    assert plain["update"]["activations"] == plain["update"]["logits"] == 0
    recomputed = moments(0, 1, gradient_checkpointing=True)
    assert recomputed["forward"]["activations"] == 8 * 2 * 20
    assert recomputed["backward"]["activations"] == 8 * (2 * 20 + 380)


def test_sequence_parallelism_divides_what_grows_with_tokens():
    whole, half = moments(3, 2)["forward"], moments(3, 2, sequence_parallel_size=2)["forward"]
    assert half["activations"] * 2 == whole["activations"]
    assert half["parameters"] == whole["parameters"]


def test_the_fullest_moment_decides():
    assert fullest({"a": {"x": 1, "y": 5}, "b": {"x": 4, "y": 3}, "c": {"x": 6, "y": 0}}) == ("b", {"x": 4, "y": 3})
    few_tokens = moments(0, 1, context=1)
    assert fullest(few_tokens) == ("update", few_tokens["update"])
    assert fullest(moments(0, 1, context=1000))[0] == "backward"


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
        (["--gpus", "8", "--sequence_parallel_size", "8"], "4 query heads and 2 key heads cannot be divided among 8"),
        (["--gpus", "0"], "--gpus should be at least 1, not 0"),
        (["--gpus", "-1"], "--gpus should be at least 1, not -1"),
        (["--mfu", "0"], "more than 0 and at most 1, not 0"),
        (["--mfu", "40"], "more than 0 and at most 1, not 40"),
        (["--mfu", "nan"], "more than 0 and at most 1, not nan"),
        (["--tokens", "-5"], "--tokens should be at least 1, not -5"),
        (["--tokens", "0"], "--tokens should be at least 1, not 0"),
        (["--peak-tflops", "0"], "--peak-tflops should be more than 0, not 0"),
        (["--gpu-memory", "-1"], "--gpu-memory should be more than 0 GiB, not -1"),
    ],
)
def test_mistakes_are_explained(recipe, capsys, flags, words):
    assert main(["plan", str(recipe), "--gpus", "2", *flags]) == 2
    assert words in capsys.readouterr().err


def test_training_refuses_the_heads_that_the_plan_refuses(recipe):
    """Of 28 query heads and 4 key heads, as of Qwen2.5-7B: what 8 ranks cannot divide, and what 4 and 14 can."""
    folder = str(ROOT / "launch" / "recipes" / "shapes" / "qwen2.5-7b")
    for size in (1, 2, 4, 7, 14, 28):
        check_model(folder, size)
    with pytest.raises(ValueError, match=r"28 query heads and 4 key heads .* may be one of 1, 2, 4, 7, 14, 28"):
        check_model(folder, 8)


def test_given_tokens_end_where_the_recipe_does(recipe, capsys):
    def steps_and_tokens(*flags: str) -> tuple[int, int]:
        assert main(["plan", str(recipe), "--gpus", "2", "--tokens", "13000000", "--json", *flags]) == 0
        report = json.loads(capsys.readouterr().out)
        return report["steps"], report["tokens"]

    assert steps_and_tokens() == (2500, 13_000_000)
    assert steps_and_tokens("--max_steps", "10") == (10, 10 * 4 * 1300)
    assert steps_and_tokens("--max_steps", "9999") == (2500, 13_000_000)
    assert steps_and_tokens("--data.max_tokens", "5201") == (2, 5201)


@pytest.mark.parametrize("told", ["recipe", "checkpoint"])
def test_the_stock_mask_is_trained_with_but_not_evaluated(recipe, told):
    """Whether the recipe says so, or the checkpoint that an earlier training has left."""
    config = parse(recipe)
    manifest = Path(config.model) / "mvtrain.json"
    if told == "recipe":
        config = config.model_copy(update={"scheme": "causal"})
    else:
        manifest.write_text(json.dumps({"scheme": "causal", "tags": {}}))
    assert make_plan(config, 1).scheme == "causal"
    evaluating = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"every_steps": 1})})
    with pytest.raises(ValueError, match="scheme causal runs no paths"):
        make_plan(evaluating, 1)
