"""Peak memory of real training against what `mvtrain plan` says.

    python benchmarks/memory.py

A random model of Qwen2's form, real DeepSpeed processes, two steps; for each configuration the peak of the first rank:
on the CPU its resident memory above what libraries and the planned data take, on CUDA the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml
from transformers import Qwen2Config, Qwen2ForCausalLM

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import write_results
from mvtrain.train.batching import Batching
from mvtrain.train.config import TrainConfig
from mvtrain.train.estimate import ModelSize, estimate, fullest
from mvtrain.train.settings import deepspeed_settings
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[1]
CASES = [
    {"ranks": 1, "zero_stage": 0, "precision": "bf16"},
    {"ranks": 1, "zero_stage": 1, "precision": "fp32"},
    {"ranks": 1, "zero_stage": 1, "precision": "bf16"},
    {"ranks": 1, "zero_stage": 3, "precision": "bf16", "gradient_checkpointing": True},
    {"ranks": 2, "zero_stage": 1, "precision": "bf16"},
    {"ranks": 2, "zero_stage": 2, "precision": "bf16"},
    {"ranks": 2, "zero_stage": 3, "precision": "bf16"},
    {"ranks": 2, "zero_stage": 3, "precision": "fp32"},
    {"ranks": 2, "zero_stage": 3, "precision": "bf16", "gradient_checkpointing": True},
]
BASELINE = """
import sys
import deepspeed, transformers.models.qwen2.modeling_qwen2
from mvtrain.train.config import TrainConfig
from mvtrain.train.trainer import Trainer
Trainer(TrainConfig.parse([sys.argv[1]]))
# Not getrusage: what it says began with the process that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def main() -> None:
    options = _options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(Path(folder), options)
        traces = _write_traces(Path(folder), options.context)
        rows = [_row(case, Path(folder), model, traces, options.context, device) for case in CASES]
    command = " ".join(["python benchmarks/memory.py", *sys.argv[1:]])
    write_results("memory", "Peak memory of training against the estimate", command, device, rows)


def _row(case: dict, folder: Path, model: Path, traces: Path, context: int, device: torch.device) -> dict:
    case = dict(case)
    ranks = case.pop("ranks")
    values = {
        "model": str(model),
        "output_dir": str(folder / f"out-{ranks}-{'-'.join(map(str, case.values()))}"),
        "data": {"parallel": [str(traces)]},
        "context": context,
        "max_steps": 2,
        "deepspeed": str(ROOT / "ds_configs" / "cpu.json"),
        **case,
    }
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    config = TrainConfig.parse([str(recipe)])
    batching = Batching.of(config, ranks)
    size = ModelSize.of_checkpoint(str(model))
    moment, parts = fullest(estimate(size, config, batching, deepspeed_settings(config, batching)))
    _train(recipe, ranks)
    log = (Path(config.output_dir) / "log.jsonl").read_text().splitlines()
    last = json.loads(log[-1])
    measured = last["cuda_gib"] if device.type == "cuda" else last["rss_gib"] - _baseline_gib(recipe)
    predicted = sum(parts.values()) / 2**30
    print(f"{ranks} ranks {case}: {measured:.2f} GiB, predicted {predicted:.2f}", file=sys.stderr, flush=True)
    return {
        "ranks": ranks,
        "ZeRO": case["zero_stage"],
        "precision": case["precision"],
        "checkpointing": case.get("gradient_checkpointing", False),
        "measured GiB": measured,
        "predicted GiB": predicted,
        "predicted / measured": predicted / measured,
        "fullest": moment,
        **{use: value / 2**30 for use, value in parts.items()},
    }


def _train(recipe: Path, ranks: int) -> None:
    # glibc would keep freed memory in its arenas; large blocks go straight back to the system.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    deepspeed = str(Path(sys.executable).with_name("deepspeed"))
    command = [deepspeed, "--num_accelerators", str(ranks), str(ROOT / "launch" / "sft.py"), str(recipe)]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stdout[-2000:] + run.stderr[-2000:])


def _baseline_gib(recipe: Path) -> float:
    """Of a process that has read the data and loaded no weights."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BASELINE, str(recipe)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1]) / 2**20


def _write_model(folder: Path, options: argparse.Namespace) -> Path:
    config = Qwen2Config(
        hidden_size=options.hidden,
        intermediate_size=4 * options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        vocab_size=32768,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def _write_traces(folder: Path, context: int) -> Path:
    """Traces with one block each that nearly fill a pack of one-byte tokens."""
    body = "tick tock " * (context // 33)
    outlines = "".join(f"<Outline>\n{i}: count\n</Outline>\n" for i in (1, 2, 3))
    paths = "".join(f"<Path>\n{i}: {body}\n</Path>\n" for i in (1, 2, 3))
    block = f"<Parallel>\n<Goal>\n{outlines}</Goal>\n{paths}<Conclusion>\nAll.\n</Conclusion>\n</Parallel>"
    row = {"question": "Count.", "response": f"<Think>\n{block}\n</Think>\n\n3"}
    (folder / "traces.jsonl").write_text((json.dumps(row) + "\n") * 8)
    return folder / "traces.jsonl"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--context", type=int, default=2048)
    return parser.parse_args()


if __name__ == "__main__":
    main()
