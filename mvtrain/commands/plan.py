"""Say before anything is started whether a run fits into memory, and how long it takes."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.train.config import TrainConfig
    from mvtrain.train.estimate import ModelSize

CONFIGURATIONS = Path(__file__).parents[2] / "ds_configs"
CONTEXT_GIB = 0.6
"""What a CUDA context and the communication library take beside the allocator."""


@dataclass
class Work:
    """What there is to compute, or why that is not known."""

    steps: int | None = None
    tokens: int | None = None
    fill: float | None = None
    pairs: int = 0
    unknown: str = ""
    warnings: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="recipe of a training run; unknown options override its keys (--context 8192)")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="number of GPUs (of ranks)")
    parser.add_argument("--gpu-memory", type=float, default=80, metavar="G", help="of each, in GiB (default: 80)")
    parser.add_argument("--gpu", default="H100", help="H100 (default), H200 or A100: its peak in bfloat16")
    parser.add_argument("--peak-tflops", type=float, metavar="X", help="of another GPU, dense bfloat16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (default: 0.4)")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens to train on, where the data is not at hand")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.parse_args = parser.parse_known_args  # keys of the recipe are read by the recipe's own parser


def run(parsed: tuple[argparse.Namespace, list[str]]) -> int:
    from mvtrain.train.batching import Batching
    from mvtrain.train.config import TrainConfig
    from mvtrain.train.estimate import ModelSize
    from mvtrain.train.model import check_model

    args, overrides = parsed
    check_ranges(args)
    if args.tokens is not None:
        overrides = [
            *overrides,
            "--data.curriculum",
            "none",
            "--data.parallel",
            "[not/read]",
            "--data.sequential",
            "[]",
        ]
    config = TrainConfig.parse([args.recipe, *overrides])
    batching = Batching.of(config, args.gpus)
    check_model(config.model, config.sequence_parallel_size)
    size = ModelSize.of_checkpoint(config.model)
    given = args.tokens is not None
    work = given_work(args.tokens, config, batching) if given else planned_work(config, args.gpus)
    report = {
        "model": config.model,
        "parameters": size.parameters,
        "gpus": args.gpus,
        "gpu_memory_gib": args.gpu_memory,
        "packs_per_step": batching.packs_per_step,
        "tokens_per_step": batching.packs_per_step * config.context,
        "steps": work.steps,
        "tokens": work.tokens,
        "fill": work.fill,
        "unknown": work.unknown or None,
        "hours": hours(size, config, work, args),
        "mfu": args.mfu,
        "configurations": [of_configuration(path, size, config, batching, args) for path in configurations(config)],
    }
    print(json.dumps(report, indent=2) if args.json else describe(report))
    return 0


def check_ranges(args: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option is not in its range.
    """
    if args.gpus < 1:
        raise ValueError(f"--gpus should be at least 1, not {args.gpus}")
    if args.tokens is not None and args.tokens < 1:
        raise ValueError(f"--tokens should be at least 1, not {args.tokens}")
    if not args.gpu_memory > 0:
        raise ValueError(f"--gpu-memory should be more than 0 GiB, not {args.gpu_memory:g}")
    if args.peak_tflops is not None and not args.peak_tflops > 0:
        raise ValueError(f"--peak-tflops should be more than 0, not {args.peak_tflops:g}")
    if not 0 < args.mfu <= 1:
        raise ValueError(f"--mfu is a share of the peak, more than 0 and at most 1, not {args.mfu:g}")


def configurations(config: TrainConfig) -> list[Path]:
    """The recipe's own first, then those that are shipped."""
    own = Path(config.deepspeed)
    others = [path for path in sorted(CONFIGURATIONS.glob("*.json")) if path.resolve() != own.resolve()]
    return [own, *(Path(os.path.relpath(path)) for path in others)]


def of_configuration(path: Path, size: ModelSize, config: TrainConfig, batching: Any, args: Any) -> dict[str, Any]:
    """Memory by use at its fullest moment, in GiB, and whether it fits."""
    from mvtrain.train.estimate import estimate, fullest, host_bytes
    from mvtrain.train.settings import deepspeed_settings

    stage = config.zero_stage if str(path) == config.deepspeed else None
    chosen = config.model_copy(update={"deepspeed": str(path), "zero_stage": stage})
    settings = deepspeed_settings(chosen, batching)
    moment, num_bytes = fullest(estimate(size, chosen, batching, settings))
    parts = {use: n / 2**30 for use, n in num_bytes.items()}
    total = sum(parts.values()) + CONTEXT_GIB
    return {
        "file": str(path) if stage is None else f"{path} (zero_stage {stage})",
        "gib": {use: round(value, 2) for use, value in parts.items()} | {"context": CONTEXT_GIB},
        "total_gib": round(total, 2),
        "fullest": moment,
        "host_gib": round(host_bytes(size, chosen, batching, settings) / 2**30, 2),
        "fits": total <= args.gpu_memory,
    }


def planned_work(config: TrainConfig, num_gpus: int) -> Work:
    """Read the data and plan the steps, as training does."""
    from mvtrain.train.plan import make_plan

    try:
        plan = make_plan(config, num_gpus)
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        return Work(unknown=f"{reason}; give --tokens N to plan without the data")
    tokens = sum(step.num_tokens for step in plan.steps)
    fill = sum(plan.fill(step) for step in plan.steps) / len(plan.steps)
    pairs = sum(plan.num_visible_pairs(step) for step in plan.steps)
    return Work(len(plan.steps), tokens, round(fill, 4), pairs)


def given_work(tokens: int, config: TrainConfig, batching: Any) -> Work:
    """Packs taken for full, each one causal document: an upper bound of attention's share.

    The recipe's `max_steps` and `data.max_tokens` end it earlier.
    """
    per_step = batching.packs_per_step * config.context
    limits = [config.data.max_tokens, config.max_steps and config.max_steps * per_step]
    tokens = min([tokens, *(limit for limit in limits if limit)])
    return Work(-(-tokens // per_step), tokens, None, tokens * (config.context + 1) // 2)


def hours(size: ModelSize, config: TrainConfig, work: Work, args: argparse.Namespace) -> float | None:
    """FLOPs / (GPUs x peak x MFU); recomputing layers costs a third more."""
    from transformers import AutoConfig

    from mvtrain.train.flops import PEAK_FLOPS, step_flops

    if work.tokens is None:
        return None
    if args.peak_tflops is None and args.gpu not in PEAK_FLOPS:
        raise ValueError(f"unknown GPU {args.gpu!r}; choose {', '.join(PEAK_FLOPS)}, or give --peak-tflops")
    peak = args.peak_tflops * 1e12 if args.peak_tflops else PEAK_FLOPS[args.gpu]
    flops = step_flops(AutoConfig.from_pretrained(config.model), size.parameters, work.tokens, work.pairs)
    if config.gradient_checkpointing:
        flops *= 4 / 3
    return round(flops / (args.gpus * peak * args.mfu) / 3600, 3)


def describe(report: dict[str, Any]) -> str:
    uses = list(report["configurations"][0]["gib"])
    lines = [
        f"{report['model']}: {report['parameters']:,} parameters on {report['gpus']} GPUs of "
        f"{report['gpu_memory_gib']:g} GiB, {report['packs_per_step']} packs "
        f"({report['tokens_per_step']:,} tokens) a step",
        _work_line(report),
        "",
        "GiB per GPU   " + "".join(f"{use:>12}" for use in uses) + f"{'in all':>10}{'host':>8}  fullest",
    ]
    for row in report["configurations"]:
        numbers = "".join(f"{row['gib'][use]:>12.2f}" for use in uses)
        mark = "fits" if row["fits"] else "too much"
        lines += [
            row["file"],
            f"  {mark:<12}{numbers}{row['total_gib']:>10.2f}{row['host_gib']:>8.1f}  {row['fullest']}",
        ]
    if not any(row["fits"] for row in report["configurations"]):
        lines += [
            "",
            "Nothing fits: try gradient_checkpointing, more GPUs, sequence_parallel_size or a shorter context.",
        ]
    return "\n".join(lines)


def _work_line(report: dict[str, Any]) -> str:
    if report["steps"] is None:
        return f"steps and hours are not known: {report['unknown']}"
    fill = f", packs {report['fill']:.1%} full" if report["fill"] else ""
    return (
        f"{report['steps']:,} steps, {report['tokens']:,} tokens{fill}: {report['hours']:.2f} hours "
        f"at an MFU of {report['mfu']:.0%}"
    )
