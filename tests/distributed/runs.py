"""Small runs: a tiny model, generated traces, a recipe, and real processes to train with."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from mvtrain.train.config import TrainConfig
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch_sft(recipe: Path, *flags: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_accelerators 2 launch/sft.py RECIPE flags`."""
    return launch("sft.py", str(recipe), *flags, port=port)


def launch(script: str, *arguments: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_accelerators 2 launch/SCRIPT arguments`."""
    port = port or free_port()
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", "2", "--master_port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(
        [*command, str(ROOT / "launch" / script), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
