"""Recipes and flags become one configuration, and every mistake is named at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mvtrain.train.batching import Batching
from mvtrain.train.config import ConfigError, TrainConfig, describe
from mvtrain.train.settings import check_with_deepspeed, deepspeed_settings, zero_stage

ROOT = Path(__file__).parents[1]


@pytest.fixture
def recipe(tmp_path):
    """A complete recipe whose files exist."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "traces.jsonl").write_text("{}\n")
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    values = {
        "model": str(tmp_path / "base"),
        "output_dir": str(tmp_path / "out"),
        "data": {"parallel": str(tmp_path / "traces.jsonl"), "epochs": 3},
        "deepspeed": str(tmp_path / "ds.json"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def problems(argv) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.parse([str(word) for word in argv])
    return caught.value.problems


def parse(*argv) -> TrainConfig:
    return TrainConfig.parse([str(word) for word in argv])


def test_flags_override_the_recipe(recipe):
    config = parse(
        "--local_rank=1", recipe, "--learning_rate", "1e-4", "--data.epochs=2", "--betas", "[0.8, 0.9]", "--dry-run",
        "--wandb.name", "7",
    )  # fmt: skip
    assert config.learning_rate == 1e-4
    assert config.data.epochs == 2
    assert config.data.parallel == [str(recipe.parent / "traces.jsonl")]
    assert config.betas == (0.8, 0.9)
    assert config.dry_run
    assert config.wandb.name == "7"
    assert parse(recipe).data.epochs == 3


def test_defaults_are_the_papers(recipe):
    config = parse(recipe)
    assert (config.learning_rate, config.warmup_ratio, config.weight_decay) == (1e-5, 0.05, 1e-4)
    assert config.betas == (0.9, 0.95)
    assert config.precision == "bf16"


def test_every_mistake_is_named_at_once(recipe):
    found = problems(
        [recipe, "--contxt", "3", "--context", "0", "--data.paralel", "x", "--epochs", "2", "--precision", "fp16",
         "--model", "nowhere", "--data.parallel", "missing.jsonl", "--betas", "[0.9, 1.5]", "--seed", "abc",
         "--deepspeed", "none.json", "--resume", "runs/none", "--keep"]
    )  # fmt: skip
    expected = {
        "contxt": "did you mean context?",
        "context": "greater than or equal to 1, not 0",
        "data.paralel": "did you mean data.parallel?",
        "epochs": "did you mean data.epochs?",
        "precision": "'bf16' or 'fp32', not 'fp16'",
        "model": "mvtrain convert SOURCE nowhere",
        "data.parallel": "no such file: missing.jsonl",
        "betas": "less than 1",
        "seed": "integer",
        "deepspeed": "no such file: none.json",
        "resume": "no such checkpoint: runs/none",
        "keep": "needs a value",
    }
    by_key = {problem.split(":")[0]: problem for problem in found}
    assert by_key.keys() == expected.keys()
    for key, words in expected.items():
        assert words in by_key[key]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data.parallel", "[]"], "no sources"),
        (["--data.curriculum", "eight_phase"], "give both"),
        (["--export_dtype", "fp32"], "needs precision fp32"),
        (["second.yaml"], "more than one recipe"),
        (["--attention", "foo"], "attention"),
        (["--output_dir", __file__], "is a file; give a folder"),
        (["--data", "3"], "data"),
    ],
)
def test_single_mistakes(recipe, flags, words):
    assert words in "\n".join(problems([recipe, *flags]))


def test_a_recipe_that_is_no_yaml(tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1\n")
    assert any("is not YAML" in problem for problem in problems([bad]))
    assert problems([tmp_path / "none.yaml"]) == [f"no recipe in {tmp_path / 'none.yaml'} (No such file or directory)"]
    bad.write_bytes(b"model: \xff\xfe")
    assert problems([bad]) == [f"{bad} is not UTF-8 text; a recipe is a YAML file"]
    bad.write_text("- a\n")
    assert any("expected keys and values" in problem for problem in problems([bad]))


def test_help_names_every_field_and_fits_two_screens():
    text = describe()
    for key in ("model", "data.parallel", "data.max_tokens", "wandb.project", "export_dtype", "resume"):
        assert f"  {key} " in text
    assert len(text.splitlines()) < 70
    assert max(map(len, text.splitlines())) < 160


def test_mistakes_end_in_status_2_without_a_traceback(recipe):
    sft = [sys.executable, str(ROOT / "launch" / "sft.py")]
    run = subprocess.run([*sft, str(recipe), "--contxt", "1"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert "did you mean context?" in run.stderr
    assert "Traceback" not in run.stderr


def test_help_imports_no_torch():
    code = "import sys; from mvtrain.train.config import describe; describe(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "launch" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_only_lack_files(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        parse(path)
    except ConfigError as error:
        left = [p for p in error.problems if "no such file" not in p and "no checkpoint in" not in p]
        assert not left, left


def settings_of(config, world_size):
    return deepspeed_settings(config, Batching.of(config, world_size))


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_shipped_deepspeed_configurations(path, recipe):
    config = parse(recipe, "--deepspeed", path, "--gradient_accumulation_steps", 4, "--max_grad_norm", 0)
    settings = settings_of(config, 2)
    assert settings["train_batch_size"] == 8
    assert settings["gradient_accumulation_steps"] == 4
    assert settings["gradient_clipping"] == 0
    assert "auto" not in json.dumps(settings)
    if "offload" not in path.stem:
        assert settings["optimizer"]["params"]["torch_adam"]


def test_the_recipe_wins_over_the_deepspeed_file(recipe):
    given = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
        "train_batch_size": "auto",
        "gradient_clipping": 7,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-6}},
    }
    (recipe.parent / "ds.json").write_text(json.dumps(given))
    settings = settings_of(parse(recipe), 4)
    assert settings["gradient_clipping"] == 1.0
    assert settings["train_batch_size"] == 4
    assert settings["optimizer"]["params"]["lr"] == 1e-5
    assert settings["optimizer"]["params"]["eps"] == 1e-6
    assert settings["bf16"]["enabled"]
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["zero_optimization"] == {"stage": 2}
    assert zero_stage(settings_of(parse(recipe, "--zero_stage", 1), 4)) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fp16": {"enabled": True}}, "fp16 is not supported"),
        ({"scheduler": {"type": "WarmupLR"}}, "remove `scheduler`"),
        ({"optimizer": {"type": "Lamb"}}, "use AdamW"),
        ({"zero_optimization": {"stage": 5}}, "choose 0, 1, 2 or 3"),
        ([], "expected an object"),
        ({"zero_optimization": 3}, "zero_optimization should be an object, {...}, not 3"),
        ({"fp16": True}, "fp16 should be an object, {...}, not true"),
        ({"bf16": True}, "bf16 should be an object, {...}, not true"),
        ({"optimizer": None}, "optimizer should be an object, {...}, not null"),
        ({"optimizer": {"type": "AdamW", "params": 1}}, "optimizer.params should be an object"),
        ({"zero_optimization": {"stage": 3, "offload_param": "cpu"}}, "zero_optimization.offload_param should be an"),
        ({"zero_optimization": {"stage": "three"}}, "zero_optimization.stage is 'three'; choose"),
    ],
)
def test_deepspeed_files_that_cannot_be(recipe, given, words):
    (recipe.parent / "ds.json").write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=re.escape(words)):
        settings_of(parse(recipe), 1)


def test_offloading_that_is_turned_off_is_none(recipe):
    zero = {"stage": 3, "offload_optimizer": {"device": "none"}, "offload_param": None}
    (recipe.parent / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    settings = settings_of(parse(recipe), 1)
    assert settings["zero_optimization"] == {"stage": 3}
    assert settings["optimizer"]["params"]["torch_adam"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"zero_optimization": {"stage": 3, "overlap_com": True}}, "zero_optimization.overlap_com: unknown key"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpuu"}}},
            "zero_optimization.offload_param.device: input should be 'none', 'cpu' or 'nvme', not 'cpuu'",
        ),
        ({"zero_optimization": {"stage": 3, "reduce_bucket_size": "many"}}, "valid integer"),
        ({"flops_profiler": {"enabled": "sure"}}, "DeepSpeed cannot read it: "),
    ],
)
def test_what_deepspeed_would_refuse_is_refused_before_the_start(recipe, given, words):
    pytest.importorskip("deepspeed")
    check_with_deepspeed(settings_of(parse(recipe), 2), "ds.json")
    (recipe.parent / "ds.json").write_text(json.dumps(given))
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_with_deepspeed(settings_of(parse(recipe), 2), "ds.json")


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_deepspeed_accepts_the_shipped_configurations(path, recipe):
    pytest.importorskip("deepspeed")
    check_with_deepspeed(settings_of(parse(recipe, "--deepspeed", path), 4), str(path))
