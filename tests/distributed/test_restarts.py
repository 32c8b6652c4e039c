"""A run that is stopped and started again, with the same or another number of ranks, as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvtrain.train import checkpoint_files
from mvtrain.train.stopping import STOPPED
from tests.distributed.runs import (
    launch_sft,
    log_of,
    num_logged,
    parse,
    processes_of_ranks,
    start,
    wait_for,
    write_recipe,
    write_traces,
)

pytest.importorskip("deepspeed")

NUM_STEPS = 24


def recipe_in(folder: Path, **changes) -> Path:
    """24 steps of four packs each, a checkpoint every eight."""
    traces = write_traces(folder / "traces.jsonl", 20)
    values = {
        "data": {"parallel": [str(traces)], "epochs": 12},
        "packs_per_step": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": NUM_STEPS,
        "save_every_steps": 8,
        "log_every": 4,
        **changes,
    }
    return write_recipe(folder, tied=True, **values)


def out_of(recipe: Path) -> Path:
    return Path(parse(recipe).output_dir)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "export" / "model.safetensors")


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def stop_after(recipe: Path, num_steps: int, number: signal.Signals, *, ranks: int, victim: int = 0):
    """Start, signal one rank once so many steps are logged, and wait for the end: (exit status, stdout, stderr)."""
    launcher = start("sft.py", str(recipe), ranks=ranks)
    wait_for(lambda: num_logged(out_of(recipe)) >= num_steps, launcher)
    processes_of_ranks(launcher)[victim].send_signal(number)
    output, errors = launcher.communicate(timeout=120)
    return launcher.returncode, output, errors


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    recipe = recipe_in(tmp_path_factory.mktemp("straight"))
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return out_of(recipe)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_saves_at_once_and_goes_on_bit_for_bit(straight, tmp_path, number):
    recipe = recipe_in(tmp_path)
    out = out_of(recipe)
    status, output, errors = stop_after(recipe, 3, number, ranks=2, victim=1)
    assert status == STOPPED, output + errors
    done = num_logged(out)
    assert 3 <= done < NUM_STEPS
    assert f"stopped after step {done} of {NUM_STEPS}, saved" in output
    assert checkpoints(out)[-1] == f"step-{done:06d}"
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"resumed after step {done} of {NUM_STEPS}" in run.stdout
    assert_same_run(straight, out)


def assert_same_run(expected: Path, found: Path) -> None:
    """Weights bit for bit, and a log with every step once."""
    keys = ("step", "phase", "loss", "loss_tag", "loss_path", "loss_rest", "lr", "grad_norm", "tokens", "phase_loss")
    logs = [[[record[key] for key in keys] for record in log_of(out)] for out in (expected, found)]
    assert logs[0] == logs[1]
    first, second = weights(expected), weights(found)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_from_a_named_checkpoint_is_restarted_by_the_same_command(straight, tmp_path):
    recipe = recipe_in(tmp_path, resume=str(straight / "checkpoints" / "step-000016"))
    out = out_of(recipe)
    status, output, errors = stop_after(recipe, 2, signal.SIGTERM, ranks=2)
    assert status == STOPPED, output + errors
    assert "resumed after step 16 of 24" in output
    done = log_of(out)[-1]["step"]
    assert 18 <= done < NUM_STEPS
    assert json.loads((out / "stopped.json").read_text()) == {"step": done}
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"resumed after step {done} of 24" in run.stdout
    assert not (out / "stopped.json").exists()
    keys = ("step", "loss", "lr", "grad_norm", "tokens")
    expected, found = ([[record[key] for key in keys] for record in log_of(folder)] for folder in (straight, out))
    assert found == expected[16:]
    assert all(torch.equal(value, weights(out)[name]) for name, value in weights(straight).items())


@pytest.mark.parametrize(
    ("stage", "precision", "stops"),
    [
        (3, "fp32", [(2, 4), (1, 9), (4, 14)]),
        (2, "bf16", [(1, 9)]),
        (1, "bf16", [(2, 4), (1, 9)]),
        (0, "fp32", [(1, 9)]),
    ],
)
def test_other_numbers_of_ranks_take_the_same_steps(tmp_path, stage, precision, stops):
    """2 -> 1 (-> 4) -> 2 ranks by restarts alone; `stops` are (ranks, stopped after so many steps)."""
    straight = recipe_in(tmp_path, zero_stage=stage, precision=precision, output_dir=str(tmp_path / "straight"))
    run = launch_sft(straight)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    recipe = recipe_in(tmp_path, zero_stage=stage, precision=precision)
    out = out_of(recipe)
    for ranks, num_steps in stops:
        status, output, errors = stop_after(recipe, num_steps, signal.SIGTERM, ranks=ranks)
        assert status == STOPPED, output + errors
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"from {stops[-1][0]} to 2 ranks" in run.stdout
    assert not [name for name in checkpoints(out) if "universal" in name]
    expected, found = ([record["loss"] for record in log_of(folder)] for folder in (out_of(straight), out))
    assert len(found) == len(expected) == NUM_STEPS
    assert found == pytest.approx(expected, rel=1e-4 if precision == "fp32" else 2e-3)
    assert max(expected) - min(expected) > 0.5, "the run learned something that could be lost"


def test_retention(tmp_path):
    recipe = recipe_in(tmp_path, save_every_steps=4, keep=2, keep_every_steps=8)
    run = launch_sft(recipe, "--max_steps", "20")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    names = ["step-000008", "step-000016", "step-000020"]
    assert checkpoints(out_of(recipe)) == names


def damage_state(folder: Path) -> None:
    text = (folder / "trainer.json").read_text()
    (folder / "trainer.json").write_text(text[: len(text) // 2])


def damage_byte(folder: Path) -> None:
    file = max(folder.glob("*optim_states.pt"), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_length(folder: Path) -> None:
    file = next(folder.glob("zero_pp_rank_1*model_states.pt"))
    file.write_bytes(file.read_bytes()[:-1])


def damage_file(folder: Path) -> None:
    next(folder.glob("zero_pp_rank_1*optim_states.pt")).unlink()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_state, "trainer.json is cut off"),
        (damage_byte, "is not what was saved (checksum)"),
        (damage_length, "bytes were saved"),
        (damage_file, "No such file or directory"),
    ],
)
def test_damage_is_found(straight, tmp_path, damage, words):
    folder = shutil.copytree(straight / "checkpoints" / f"step-{NUM_STEPS:06d}", tmp_path / "step-000024")
    assert checkpoint_files.damage(folder, checkpoint_files.read_state(folder)["files"]) == []
    damage(folder)
    try:
        (problem,) = checkpoint_files.damage(folder, checkpoint_files.read_state(folder)["files"])
    except ValueError as error:
        problem = str(error)
    assert words in problem


@pytest.mark.parametrize("damage", [damage_state, damage_byte])
def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path, damage):
    recipe = recipe_in(tmp_path)
    out = out_of(recipe)
    shutil.copytree(straight, out)
    shutil.rmtree(out / "export")
    damage(out / "checkpoints" / f"step-{NUM_STEPS:06d}")
    (out / "checkpoints" / "step-000020.partial").mkdir()
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"step-{NUM_STEPS:06d} is damaged" in run.stdout
    assert "step-000020.partial was cut off" in run.stdout
    assert "resumed after step 16 of 24" in run.stdout
    assert_same_run(straight, out)
    assert checkpoints(out) == ["step-000016", f"step-{NUM_STEPS:06d}", f"step-{NUM_STEPS:06d}.damaged"]


def test_what_a_checkpoint_holds(straight):
    folder = straight / "checkpoints" / f"step-{NUM_STEPS:06d}"
    state = json.loads((folder / "trainer.json").read_text())
    assert (state["step"], state["world_size"], state["zero_stage"]) == (NUM_STEPS, 2, 3)
    assert state["phase"].startswith("epoch ")
    assert len(state["run_id"]) == 8
    assert state["identity"]["recipe"]["packs_per_step"] == 4
    assert set(state["files"]) == {path.name for path in folder.iterdir()} - {"trainer.json"}
    header = json.loads((folder / "run.json").read_text())
    assert header["recipe"]["packs_per_step"] == 4
    assert header["deepspeed_config"]["zero_optimization"]["stage"] == 3
    assert header["torch"] == torch.__version__
    assert header["machines"][0]["ranks"] == 2
    assert header == json.loads((straight / "run.json").read_text())
