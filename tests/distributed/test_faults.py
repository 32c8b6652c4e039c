"""Faults as clusters have them, injected for real: what the run does, and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

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
from tests.soak_training import soak

pytest.importorskip("deepspeed")


def recipe_in(folder: Path, *, tied: bool = True, **changes) -> Path:
    traces = write_traces(folder / "traces.jsonl", 12)
    data = {"parallel": [str(traces)], "epochs": 20}
    return write_recipe(folder, tied=tied, **{"data": data, "max_steps": 24, "save_every_steps": 8, **changes})


def out_of(recipe: Path) -> Path:
    return Path(parse(recipe).output_dir)


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_and_is_named(tmp_path, victim):
    """Without a launcher that notices: the ranks are alone with it, as those on another machine would be."""
    recipe = recipe_in(tmp_path, max_steps=5000, data={"parallel": [str(tmp_path / "traces.jsonl")], "epochs": 5000})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "launch/sft.py", str(recipe)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    wait_for(lambda: num_logged(out_of(recipe)) >= 2, ranks[1 - victim])
    killed = time.monotonic()
    ranks[victim].kill()
    _, errors = ranks[1 - victim].communicate(timeout=60)
    ranks[victim].communicate()
    assert time.monotonic() - killed < 60
    assert ranks[1 - victim].returncode == 1
    name = f"rank {victim} on {socket.gethostname()} (process {ranks[victim].pid})"
    assert f"sft: error: {name} is gone: killed, out of memory, or its machine is down; all ranks stop" in errors
    assert "Traceback" not in errors


def test_the_launcher_too_ends_when_a_rank_is_killed(tmp_path):
    recipe = recipe_in(tmp_path, max_steps=5000, data={"parallel": [str(tmp_path / "traces.jsonl")], "epochs": 5000})
    launcher = start("sft.py", str(recipe))
    wait_for(lambda: num_logged(out_of(recipe)) >= 2, launcher)
    processes = processes_of_ranks(launcher)
    processes[1].send_signal(signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode not in (0, STOPPED)
    assert f"rank 1 on {socket.gethostname()}" in errors
    assert not any(process.is_running() for process in processes)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"needs to mount a file system: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave 100 KiB: room for the log, but for no checkpoint."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 100 * 1024))
    return ballast


def test_a_full_disk_leaves_the_last_good_checkpoint(small_disk, tmp_path):
    recipe = recipe_in(tmp_path, output_dir=str(small_disk / "out"))
    out = small_disk / "out"
    launcher = start("sft.py", str(recipe))
    wait_for(lambda: (out / "checkpoints" / "step-000008").exists(), launcher)
    ballast = fill(small_disk)
    output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 1, output + errors
    assert "sft: error: could not save" in errors
    assert "GiB free on its disk" in errors
    assert "rank 0" in errors
    last = checkpoints(out)[-1]
    assert f"the last good checkpoint is of step {int(last[5:])}" in errors
    assert not [name for name in checkpoints(out) if "partial" in name]
    assert "Traceback" not in errors
    ballast.unlink()
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"resumed after step {int(last[5:])} of 24" in run.stdout


def test_a_run_may_go_on_without_a_checkpoint(small_disk, tmp_path):
    recipe = recipe_in(tmp_path, output_dir=str(small_disk / "out"), on_save_error="continue", max_steps=400)
    out = small_disk / "out"
    launcher = start("sft.py", str(recipe), "--data.epochs", "400")
    wait_for(lambda: (out / "checkpoints" / "step-000008").exists(), launcher)
    ballast = fill(small_disk)
    last = int(checkpoints(out)[-1][5:15])
    wait_for(lambda: num_logged(out) >= last + 20, launcher)
    assert not [name for name in checkpoints(out) if name > f"step-{last + 8:06d}"], "the disk was full"
    ballast.unlink()
    newer = wait_for(
        lambda: [name for name in checkpoints(out) if name[5:].isdigit() and int(name[5:]) > last], launcher
    )
    processes_of_ranks(launcher)[0].send_signal(signal.SIGTERM)
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == STOPPED, output + errors
    assert "going on (on_save_error: continue)" in output
    assert newer


def test_a_disk_that_is_full_when_it_comes_to_an_evaluation(small_disk, tmp_path):
    """Room for the log only: the export that would be measured cannot be written."""
    problems = tmp_path / "ticks.jsonl"
    problems.write_text(json.dumps({"id": "p", "question": "?", "answer": "1"}) + "\n")
    evaluate = {"every_steps": 2, "task": str(problems), "max_tokens": 6}
    recipe = recipe_in(tmp_path, output_dir=str(small_disk / "out"), evaluate=evaluate, save_every_steps=0)
    fill(small_disk)
    run = launch_sft(recipe)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    told = [line for line in run.stderr.splitlines() if line.startswith("sft: error: ")]
    assert told and "No space left" in told[0], run.stderr


def poison(recipe: Path, rows: list[int]) -> None:
    """Make '~' a token that turns whatever reads it into NaN, and put it into some rows."""
    config = parse(recipe)
    weights = load_file(Path(config.model) / "model.safetensors")
    from tests.tiny import tiny_tokenizer

    weights["model.embed_tokens.weight"][tiny_tokenizer()("~")["input_ids"]] = float("nan")
    save_file(weights, Path(config.model) / "model.safetensors", {"format": "pt"})
    traces = Path(config.data.parallel[0])
    lines = traces.read_text().splitlines(keepends=True)
    for row in rows:
        lines[row] = lines[row].replace("How many", "~ How many")
    traces.write_text("".join(lines))


@pytest.mark.parametrize("stage", [3, 0])
def test_steps_that_are_not_finite_are_skipped_and_written_down(tmp_path, stage):
    recipe = recipe_in(tmp_path, tied=False, zero_stage=stage)
    poison(recipe, [4])
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    out = out_of(recipe)
    skipped = [record for record in log_of(out) if record.get("skipped")]
    assert 0 < len(skipped) < 24
    assert all(record["loss"] is None for record in skipped)
    assert all(record["loss"] > 0 for record in log_of(out) if not record.get("skipped"))
    dumped = [json.loads(line) for line in (out / "bad_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in dumped] == [record["step"] for record in skipped]
    for line in dumped:
        bad = [part for part in line["micro_steps"] if part["loss"] == "nan"]
        assert bad and all(any("row 5" in row for row in part["rows"]) for part in bad)
        assert any(isinstance(part["loss"], float) for part in line["micro_steps"]), "only one of them is to blame"
    assert f"step {skipped[0]['step']} was skipped: its loss or gradient is not finite" in run.stdout
    weights = load_file(out / "export" / "model.safetensors")
    rows = torch.isfinite(weights["model.embed_tokens.weight"]).all(1)
    assert (~rows).sum() == 1, "the poisoned row and no other"
    assert all(torch.isfinite(value).all() for name, value in weights.items() if "embed_tokens" not in name)


def test_a_disk_full_to_the_last_byte_costs_files_but_no_traceback(small_disk, tmp_path):
    """Neither the log, nor the rows of bad steps, nor checkpoints, nor the export find any room."""
    out = small_disk / "out"
    recipe = recipe_in(
        tmp_path, tied=False, output_dir=str(out), on_save_error="continue", max_steps=40, max_bad_steps=40
    )
    poison(recipe, [4])
    launcher = start("sft.py", str(recipe), "--data.epochs", "40")
    wait_for(lambda: (out / "checkpoints" / "step-000008").exists(), launcher)
    with (small_disk / "ballast").open("ab", buffering=0) as ballast:
        while launcher.poll() is None:
            with contextlib.suppress(OSError):
                ballast.write(bytes(4096))  # what a failed save gives back is taken at once
                continue
            time.sleep(0.02)
    output, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 1, output + errors
    assert "Traceback" not in output + errors
    assert errors.count(f"sft: warning: {out / 'log.jsonl'}: No space left on device; steps are missing") == 1
    assert f"its rows could not be written into {out / 'bad_steps.jsonl'} (No space left on device)" in output
    assert "going on (on_save_error: continue)" in output
    (told,) = [line for line in errors.splitlines() if line.startswith("sft: error: ")]
    assert told.startswith(f"sft: error: could not export {out / 'export'} (0.00 GiB free on its disk): ")
    assert "No space left" in told and "the last good checkpoint is of step" in told
    assert not list(out.glob("export*"))


def test_many_bad_steps_in_a_row_stop_the_run(tmp_path):
    recipe = recipe_in(tmp_path, tied=False, max_bad_steps=3)
    poison(recipe, list(range(12)))
    run = launch_sft(recipe)
    assert run.returncode == 1
    assert "These were 3 in a row (max_bad_steps)" in run.stderr
    assert "Traceback" not in run.stderr
    assert len(log_of(out_of(recipe))) == 3


def test_wandb_out_of_reach_costs_a_warning_and_is_recorded_offline(tmp_path):
    recipe = recipe_in(tmp_path, wandb={"project": "p", "mode": "online"}, max_steps=6)
    key = "0123456789" * 4
    run = launch_sft(recipe, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=key, WANDB_INIT_TIMEOUT="5")
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert run.stderr.count("sft: warning: wandb") == 1
    assert "`wandb sync` sends it later" in run.stderr
    out = out_of(recipe)
    (file,) = out.glob("wandb/offline-run-*/run-*.wandb")
    recorded = file.read_bytes()
    for name in (b"loss_path", b"grad_norm", b"tokens_per_s_per_rank"):
        assert recorded.count(name) >= 6, name
    everything = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    assert not [path for path in everything if key.encode() in path.read_bytes()], "the key is nowhere"
    assert key not in run.stdout + run.stderr


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    """A few; `python -m tests.soak_training --kills 20` is the long form."""
    kinds = soak(tmp_path, num_kills=4, seed=random.randrange(10**6))
    assert sum(kinds.values()) == 4


def endless(folder: Path, **changes) -> Path:
    data = {"parallel": [str(folder / "traces.jsonl")], "epochs": 5000}
    return recipe_in(folder, max_steps=5000, data=data, **changes)


def test_ranks_whose_launcher_has_gone_save_and_end(tmp_path):
    """`deepspeed` ends of SIGTERM at once and tells nobody."""
    recipe = endless(tmp_path, save_every_steps=0)
    launcher = start("sft.py", str(recipe))
    wait_for(lambda: num_logged(out_of(recipe)) >= 2, launcher)
    ranks = processes_of_ranks(launcher)
    launcher.terminate()
    launcher.wait(timeout=30)
    assert len(ranks) == 2
    for rank in ranks:
        rank.wait(timeout=60)
    done = num_logged(out_of(recipe))
    assert json.loads((out_of(recipe) / "stopped.json").read_text()) == {"step": done}
    assert checkpoints(out_of(recipe)) == [f"step-{done:06d}"]


def test_a_second_run_is_refused_a_dead_one_replaced_and_a_signal_at_the_start_ends_all_ranks_alike(tmp_path):
    recipe = endless(tmp_path, save_every_steps=0)
    out = out_of(recipe)
    first = start("sft.py", str(recipe), ranks=1)
    wait_for(lambda: num_logged(out) >= 1, first)
    (rank,) = processes_of_ranks(first)
    second = launch_sft(recipe)
    assert second.returncode == 2
    assert second.stderr.count(f"is in use by another run, process {rank.pid} on") == 1, "told once"
    assert "Traceback" not in second.stderr
    rank.kill()
    first.communicate(timeout=60)
    third = start("sft.py", str(recipe))
    wait_for(lambda: json.loads((out / "owner.json").read_text())["pid"] != rank.pid, third)
    processes_of_ranks(third)[1].send_signal(signal.SIGTERM)  # it loads the model
    output, errors = third.communicate(timeout=60)
    assert f"process {rank.pid} on {socket.gethostname()} has not ended its run properly; taking over" in output
    assert third.returncode == STOPPED, output + errors
    assert "sft: SIGTERM: stopped; there is no checkpoint yet" in errors
    assert "is gone" not in errors and "Traceback" not in errors
    assert json.loads((out / "stopped.json").read_text()) == {"step": 0}
    assert not (out / "owner.json").exists()
