"""Small runs: a tiny model, generated traces, a recipe, and real processes to train with."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from mvtrain.train.config import TrainConfig
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]

Finished = subprocess.CompletedProcess[str]
Started = subprocess.Popen[str]


def write_recipe(folder: Path, *, tied: bool, count: int = 12, **changes) -> Path:
    """A model and traces in `folder`, and a recipe that trains on them in fp32 with accumulation and clipping."""
    model = folder / f"model-{'tied' if tied else 'untied'}"
    if not model.exists():
        tiny_model("qwen2", tied=tied).save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
    traces = write_traces(folder / "traces.jsonl", count)
    values = {
        "model": str(model),
        "output_dir": str(folder / "out"),
        "data": {"parallel": [str(traces)], "sequential": [str(traces)]},
        "context": 1300,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "min_lr_ratio": 0.1,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "precision": "fp32",
        "loss_chunk": 100,
        "deepspeed": str(ROOT / "ds_configs" / "cpu.json"),
        **changes,
    }
    recipe = folder / f"recipe-{len(list(folder.glob('recipe-*')))}.yaml"
    recipe.write_text(yaml.safe_dump(values))
    return recipe


def write_traces(path: Path, count: int) -> Path:
    """Chains and traces of many lengths (100 to 900 tokens of the tiny tokenizer), with the public sets' columns."""
    source = random.Random(0)
    rows = []
    for number in range(count):
        paths = ["tick tock " * source.randint(1, 25) for _ in range(source.randint(2, 4))]
        nested = [paths[0] + _block(["tick ", "tock tock "], "1.") + "done ", *paths[1:]]
        rows.append(
            {
                "question": f"How many ticks, case {number}?",
                "deepseek_thinking_trajectory": "\n".join(paths),
                "deepseek_thinking_trajectory_parallel": _trace(nested if number % 3 == 2 else paths),
                "deepseek_attempt": str(sum(text.count("tick") for text in paths)),
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _trace(paths: list[str]) -> str:
    return f"<Think>\n{_block(paths)}\n</Think>"


def _block(paths: list[str], prefix: str = "") -> str:
    outlines = "\n".join(f"<Outline>\n{prefix}{i}: count\n</Outline>" for i in range(1, len(paths) + 1))
    bodies = "\n".join(f"<Path>\n{prefix}{i}: {text}\n</Path>" for i, text in enumerate(paths, 1))
    block = f"<Goal>\n{outlines}\n</Goal>\n{bodies}\n<Conclusion>\nAdd them.\n</Conclusion>"
    return f"<Parallel>\n{block}\n</Parallel>"


def parse(recipe: Path, *flags: str) -> TrainConfig:
    return TrainConfig.parse([str(recipe), *flags])


def run_pair(module: str, *arguments: str) -> None:
    """Run a module on two ranks, without a launcher."""
    run_ranks(2, module, *arguments)


def run_ranks(world_size: int, module: str, *arguments: str) -> None:
    """Run a module on some ranks, without a launcher."""
    shared = {
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world_size)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    failed = [output[-4000:] for rank, output in zip(ranks, outputs, strict=True) if rank.returncode]
    assert not failed, "\n".join(failed)


def launch_sft(recipe: Path, *flags: str, ranks: int = 2, port: int | None = None, **environment: str) -> Finished:
    """`deepspeed --num_accelerators RANKS launch/sft.py RECIPE flags`."""
    return launch("sft.py", str(recipe), *flags, ranks=ranks, port=port, **environment)


def launch(script: str, *arguments: str, ranks: int = 2, port: int | None = None, **environment: str) -> Finished:
    """`deepspeed --num_accelerators RANKS launch/SCRIPT arguments`, to its end."""
    started = start(script, *arguments, ranks=ranks, port=port, **environment)
    output, errors = started.communicate(timeout=300)
    return subprocess.CompletedProcess(started.args, started.returncode, output, errors)


def start(script: str, *arguments: str, ranks: int = 2, port: int | None = None, **environment: str) -> Started:
    """The same, running."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", **environment}
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    return subprocess.Popen(
        [*command, "--master_port", str(port or free_port()), str(ROOT / "launch" / script), *arguments],
        env=variables,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def processes_of_ranks(launcher: subprocess.Popen) -> list[psutil.Process]:
    """The training processes below a launcher, in the order of ranks."""
    found = {}
    for process in psutil.Process(launcher.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            for word in process.cmdline():
                if word.startswith("--local_rank="):
                    found[int(word.partition("=")[2])] = process
    return [found[rank] for rank in sorted(found)]


def wait_for(condition: Callable[[], Any], launcher: subprocess.Popen, seconds: float = 120) -> Any:
    """Poll until the condition is true. Fails where the launcher ends first, with what it printed."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if launcher.poll() is not None or time.monotonic() > end:
            launcher.kill()
            raise AssertionError("".join(launcher.communicate(timeout=30)))
        time.sleep(0.005)
    return value


def num_logged(out: Path) -> int:
    """Steps in log.jsonl."""
    log = out / "log.jsonl"
    return log.read_text().count("\n") if log.is_file() else 0


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
