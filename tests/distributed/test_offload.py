"""ds_configs/zero3_offload.json for real: DeepSpeed's Adam for the host, on two ranks; also where there is no GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.distributed.runs import ROOT, launch_sft, log_of, parse, write_recipe

pytest.importorskip("deepspeed")

NUM_STEPS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Name of a shipped configuration -> output_dir of a run with it."""
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        pytest.skip("needs g++ and ninja: DeepSpeed compiles its Adam on first use (apt-get install g++ ninja-build)")
    folder = tmp_path_factory.mktemp("offload")
    recipe = write_recipe(folder, tied=True, max_steps=NUM_STEPS, save_every_steps=2)
    found = {}
    for name in ("zero3", "zero3_offload"):
        found[name] = folder / name
        run = launch_sft(recipe, *flags_of(name, folder))
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return recipe, found


def flags_of(name: str, folder: Path) -> list[str]:
    return ["--deepspeed", str(ROOT / "ds_configs" / f"{name}.json"), "--output_dir", str(folder / name)]


def numbers(out: Path, key: str) -> list[float]:
    return [record[key] for record in log_of(out)]


def test_it_trains_as_without_offloading(runs):
    _, found = runs
    assert numbers(found["zero3_offload"], "loss") == pytest.approx(numbers(found["zero3"], "loss"), rel=1e-6)
    assert numbers(found["zero3_offload"], "grad_norm") == pytest.approx(numbers(found["zero3"], "grad_norm"), rel=1e-5)
    losses = numbers(found["zero3"], "loss")
    assert losses[0] - losses[-1] > 0.5, "the optimizer did something"


def test_the_optimizer_was_that_of_the_host(runs):
    _, found = runs
    settings = json.loads((found["zero3_offload"] / "run.json").read_text())["deepspeed_config"]
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "torch_adam" not in settings["optimizer"]["params"]


def test_it_goes_on_from_its_checkpoint(runs, tmp_path):
    recipe, found = runs
    out = shutil.copytree(found["zero3_offload"], tmp_path / "zero3_offload")
    shutil.rmtree(out / "checkpoints" / f"step-{NUM_STEPS:06d}")
    run = launch_sft(recipe, *flags_of("zero3_offload", tmp_path))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"resumed after step 2 of {parse(recipe).max_steps}" in run.stdout
    assert numbers(out, "loss") == numbers(found["zero3_offload"], "loss"), "bit for bit"
