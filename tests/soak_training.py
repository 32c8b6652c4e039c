"""Kill a run at random moments and start it again by the same command, until it ends; compare with one left alone.

    python -m tests.soak_training --kills 20

Moments: while starting, between steps, and while a checkpoint is written. Any rank; SIGKILL or SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import tempfile
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from mvtrain.train.stopping import STOPPED
from tests.distributed.runs import (
    Started,
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

SAVE_EVERY = 4
SAME = ("step", "phase", "loss", "loss_tag", "loss_path", "loss_rest", "lr", "grad_norm", "tokens", "phase_loss")


def soak(folder: Path, num_kills: int, seed: int = 0, stage: int = 3) -> dict[str, int]:
    """Returns how often each kind of kill came. Fails where anything differs from the run left alone."""
    recipe, alone = (recipe_in(folder, name, 6 * num_kills, stage) for name in ("killed", "alone"))
    expected = launch_sft(alone)
    assert expected.returncode == 0, expected.stdout + expected.stderr
    out, random_source, kinds = out_of(recipe), random.Random(seed), {}
    for number in range(num_kills):
        kind = kill_once(recipe, random_source)
        kinds[kind] = kinds.get(kind, 0) + 1
        print(f"kill {number + 1}: {kind}, {num_logged(out)} steps logged, newest {newest(out)}", flush=True)
    last = launch_sft(recipe)
    assert last.returncode == 0, last.stdout + last.stderr
    compare(out_of(alone), out)
    return kinds


def recipe_in(folder: Path, name: str, num_steps: int, stage: int) -> Path:
    traces = write_traces(folder / "traces.jsonl", 12)
    return write_recipe(
        folder,
        tied=True,
        output_dir=str(folder / name),
        data={"parallel": [str(traces)], "epochs": num_steps},
        max_steps=num_steps,
        save_every_steps=SAVE_EVERY,
        zero_stage=stage,
        precision="bf16",
    )


def kill_once(recipe: Path, random_source: random.Random) -> str:
    """Start the run, kill one rank, wait for the end, and check what is left."""
    out = out_of(recipe)
    moment = random_source.choice(["starting", "step", "step", "saving"])
    number = random_source.choice([signal.SIGKILL, signal.SIGTERM])
    before = newest(out)
    launcher = start("sft.py", str(recipe))
    wait_for_moment(launcher, out, moment, before, random_source)
    victims = wait_for(lambda: processes_of_ranks(launcher), launcher)
    victim = random_source.choice(victims)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.send_signal(number)
    output, errors = launcher.communicate(timeout=120)
    text = output + errors
    assert launcher.returncode != 0, text
    if f"resumed after step {before} " not in text:
        assert moment == "starting" or before == 0, text
    logged = [record["step"] for record in log_of(out)] if (out / "log.jsonl").is_file() else []
    assert logged == list(range(1, len(logged) + 1)), "a step is lost or doubled in the log"
    assert newest(out) >= before, "a good checkpoint is lost"
    if number == signal.SIGTERM and moment == "step":
        assert launcher.returncode == STOPPED, text
        assert newest(out) == len(logged), "stopped without saving"
    return f"{moment} {number.name}"


def wait_for_moment(launcher: Started, out: Path, moment: str, before: int, random_source: random.Random) -> None:
    if moment == "starting":
        time.sleep(random_source.uniform(1, 8))
        return
    began = time.time()
    wait_for(lambda: modified(out / "run.json") > began, launcher)  # it has resumed, and cut the log to that
    if moment == "saving":
        files = (out / "checkpoints").glob  # also those that an earlier kill left
        wait_for(lambda: any(modified(file) > began for file in files("*.partial/*")), launcher)
        time.sleep(random_source.uniform(0, 0.05))
        return
    goal = before + random_source.randint(1, 6)
    wait_for(lambda: num_logged(out) >= goal, launcher)
    time.sleep(random_source.uniform(0, 0.1))


def compare(expected: Path, found: Path) -> None:
    """Weights bit for bit, and every step once with the same numbers."""
    first, second = ([[record[key] for key in SAME] for record in log_of(folder)] for folder in (expected, found))
    assert first == second
    weights, others = (load_file(folder / "export" / "model.safetensors") for folder in (expected, found))
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.equal(value, others[name]), name


def modified(file: Path) -> float:
    with contextlib.suppress(OSError):  # being removed
        return file.stat().st_mtime
    return 0.0


def newest(out: Path) -> int:
    steps = [folder.name.removeprefix("step-") for folder in (out / "checkpoints").glob("step-*")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def out_of(recipe: Path) -> Path:
    return Path(parse(recipe).output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=3, help="ZeRO stage")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        kinds = soak(Path(folder), options.kills, options.seed, options.stage)
    print(f"the same weights, bit for bit, after {options.kills} kills in {time.monotonic() - began:.0f} s: {kinds}")


if __name__ == "__main__":
    main()
