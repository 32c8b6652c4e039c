"""`deepspeed launch/sft.py` as a user runs it: train, be interrupted, resume, export."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mvtrain.layout import Layout
from mvtrain.manifest import read_manifest
from mvtrain.train import resume
from mvtrain.train.config import ConfigError
from mvtrain.train.engine_setup import read_checkpoint
from mvtrain.train.identity import identity
from mvtrain.train.plan import make_plan
from mvtrain.train.trainer import Trainer
from tests.distributed.runs import launch_sft, parse, write_recipe, write_traces
from tests.tiny import tiny_tags

pytest.importorskip("deepspeed")

NUM_STEPS = 8


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Eight steps in one go, with a checkpoint every four: (recipe, output of the launch)."""
    recipe = write_recipe(
        tmp_path_factory.mktemp("straight"),
        tied=True,
        count=20,
        precision="bf16",
        max_steps=NUM_STEPS,
        save_every_steps=4,
        data={"parallel": [str(write_traces(tmp_path_factory.mktemp("traces") / "traces.jsonl", 20))], "epochs": 8},
        log_every=3,
    )
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return recipe, run


@pytest.fixture(scope="module")
def resumed(straight, tmp_path_factory):
    """The same run killed after step 5: its last checkpoint is step 4, its log has five lines and half a sixth."""
    recipe, _ = straight
    out = tmp_path_factory.mktemp("killed") / "out"
    first = output(recipe)
    shutil.copytree(first / "checkpoints" / "step-000004", out / "checkpoints" / "step-000004")
    lines = (first / "log.jsonl").read_text().splitlines(keepends=True)
    (out / "log.jsonl").write_text("".join(lines[:5]) + lines[5][:20])
    run = launch_sft(recipe, "--output_dir", str(out))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return out, run


def output(recipe: Path) -> Path:
    return Path(parse(recipe).output_dir)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_logs_every_step(straight):
    recipe, run = straight
    records = log_of(output(recipe))
    assert [record["step"] for record in records] == list(range(1, NUM_STEPS + 1))
    for record in records:
        assert record["phase"].startswith("epoch ")
        assert record["grad_norm"] > 0
        assert record["tokens"] > record["targets"] > 0
        assert 0 < record["fill"] <= 1
        assert record["rss_gib"] > 0
    assert records[-1]["loss"] < records[0]["loss"] - 0.3
    shown = [line for line in run.stdout.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in shown] == ["3/8", "6/8", "8/8"], "one rank speaks, every log_every steps"
    assert "the largest difference of a logit is" in run.stdout


def test_resuming_is_bit_identical(straight, resumed):
    recipe, _ = straight
    out, run = resumed
    assert "resumed after step 4 of 8" in run.stdout
    once = load_file(output(recipe) / "export" / "model.safetensors")
    twice = load_file(out / "export" / "model.safetensors")
    assert once.keys() == twice.keys()
    for name, value in once.items():
        assert torch.equal(value, twice[name]), name
    same = ("step", "phase", "loss", "lr", "grad_norm", "tokens")
    first, second = ([[record[key] for key in same] for record in log_of(folder)] for folder in (output(recipe), out))
    assert first == second, "also the log: no step twice, none missing"


def test_checkpoints_are_pruned(straight, resumed):
    assert checkpoints(output(straight[0])) == ["step-000004", "step-000008"]
    assert checkpoints(resumed[0]) == ["step-000004", "step-000008"]


def checkpoints(out: Path) -> list[str]:
    return sorted(folder.name for folder in (out / "checkpoints").glob("step-*"))


def test_the_export_is_a_whole_checkpoint(straight):
    recipe, _ = straight
    folder = output(recipe) / "export"
    base = parse(recipe).model
    assert not list(folder.parent.glob("export.partial"))
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights, "the tie is kept"
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    manifest = read_manifest(folder)
    assert manifest["scheme"] == "isolated"
    assert manifest["trained"]["steps"] == NUM_STEPS
    assert manifest["trained"]["tokens"] == sum(record["tokens"] for record in log_of(folder.parent))
    ids = torch.randint(0, 250, (40,))
    layout = Layout.from_ids(ids, tiny_tags())
    logits = [
        read_checkpoint(path, torch.bfloat16)(
            ids[None], position_ids=layout.position_ids[None], layout=layout, use_cache=False
        ).logits
        for path in (folder, base)
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.1, "it is the trained model, not the one it began with"
    umask = os.umask(0)
    os.umask(umask)
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def chosen(config, world_size: int, stage: int = 3) -> list[Path]:
    """Candidates to go on from, the first of which is of this run."""
    found = resume.candidates(config)
    plan = make_plan(config, world_size, resume.saved_packs_per_step(config, found, world_size))
    for folder in found[:1]:
        resume.refuse_another_run(folder, identity(config, plan), stage)
    return found


def test_resume_refuses_another_run(straight):
    recipe, _ = straight
    config = parse(recipe, "--learning_rate", "2e-3", "--data.epochs", "9")
    with pytest.raises(ConfigError) as caught:
        chosen(config, world_size=4, stage=2)
    message = str(caught.value)
    assert "ZeRO stage was 3, now it is 2" in message
    assert "learning_rate was 0.001, now it is 0.002" in message
    assert "data.epochs was 8, now it is 9" in message
    assert "context" not in message and "packs_per_step" not in message
    assert [folder.name for folder in chosen(parse(recipe), world_size=2)] == ["step-000008", "step-000004"]


def test_resume_refuses_another_model_or_data_set_and_says_what_differs(straight, tmp_path):
    recipe, _ = straight
    config = parse(recipe)
    other = shutil.copytree(config.model, tmp_path / "model")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"model weights was [0-9a-f]{16}, now it is [0-9a-f]{16}"):
        chosen(parse(recipe, "--model", str(other)), world_size=2)
    rows = Path(config.data.parallel[0]).read_text().splitlines(keepends=True)
    (tmp_path / "traces.jsonl").write_text("".join(rows[1:]))
    with pytest.raises(ConfigError) as caught:
        chosen(parse(recipe, "--data.parallel", str(tmp_path / "traces.jsonl")), world_size=2)
    assert "data source 1 was parallel, examples 20, tokens" in str(caught.value)
    assert "now it is parallel, examples 19, tokens" in str(caught.value)
    (tmp_path / "traces.jsonl").write_text("".join(rows))
    assert chosen(parse(recipe, "--data.parallel", str(tmp_path / "traces.jsonl")), world_size=2), "it only moved"


def test_more_ranks_take_the_same_steps(straight):
    """The packs of a step are the run's; what a rank does follows from them."""
    config = parse(straight[0])
    found = chosen(config, world_size=4)
    assert resume.saved_packs_per_step(config, found, 4) == 4
    two, four, three = (make_plan(config, n, resume.saved_packs_per_step(config, found, n)) for n in (2, 4, 3))
    assert two.steps == four.steps == three.steps
    assert [plan.batching.accumulation_steps for plan in (two, four, three)] == [2, 1, 2]


def test_starting_anew_beside_old_checkpoints_is_refused(straight):
    """Removing old ones would take the old run's for the newer."""
    recipe, _ = straight
    with pytest.raises(ConfigError, match="holds checkpoints of a run that went further than step 0"):
        resume.candidates(parse(recipe, "--resume", "never"))
    step_4 = str(output(recipe) / "checkpoints" / "step-000004")
    with pytest.raises(ConfigError, match="further than step 4"):
        resume.candidates(parse(recipe, "--resume", step_4))


def test_an_incomplete_checkpoint_is_not_resumed_from(straight, tmp_path):
    recipe, _ = straight
    half = tmp_path / "out" / "checkpoints" / "step-000002"
    shutil.copytree(output(recipe) / "checkpoints" / "step-000004", half, ignore=lambda *_: ["trainer.json"])
    with pytest.raises(ConfigError, match="is whole"):  # and it is all there is: nothing is trained from the beginning
        resume.candidates(parse(recipe, "--output_dir", str(tmp_path / "out")))
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        resume.candidates(parse(recipe, "--resume", str(half), "--output_dir", str(tmp_path / "new")))


def test_dry_run_tells_plan_and_memory(straight, capsys, tmp_path, monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))
    recipe, _ = straight
    config = parse(recipe, "--dry-run", "--output_dir", str(tmp_path / "none"))
    trainer = Trainer(config)
    trainer.dry_run()
    trainer.close()
    text = capsys.readouterr().out
    for words in ("20 of 20 rows kept", "epoch 1: ", "tokens a step", "ZeRO stage 3, 2 ranks", "optimizer", "in all"):
        assert words in text
    assert not (tmp_path / "none").exists()
    assert trainer.engine is None
