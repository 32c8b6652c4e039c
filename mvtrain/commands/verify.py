"""Compare the engine with the training forward pass, token by token, on generated and on scripted traces."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvtrain.engine.verification import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a question; may be repeated")
    parser.add_argument("--dtype", choices=["fp32", "fp64", "bf16", "fp16"], default="fp32", help="default: fp32")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--scheme", choices=["isolated", "original"], help="default: what the checkpoint says")
    parser.add_argument("--max-tokens", type=int, default=64, help="of the answers the model writes (default: 64)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    from mvtrain.engine import Engine, SamplingParams
    from mvtrain.engine.probe import QUESTION, TRACE
    from mvtrain.engine.verification import verify_generation, verify_trace
    from mvtrain.grammar import parse

    engine = Engine.from_pretrained(args.checkpoint, args.dtype, args.device, args.scheme)
    params = SamplingParams(max_tokens=args.max_tokens)
    questions = args.prompt or [QUESTION]
    comparisons = [verify_trace(engine, questions[0], parse(TRACE))]
    comparisons += [verify_generation(engine, question, params) for question in questions]
    for comparison in comparisons:
        print(_as_json(comparison) if args.json else describe(comparison))
    good = all(comparison.ok for comparison in comparisons) and any(c.num_paths > 1 for c in comparisons)
    if not args.json:
        print("verified: engine and training agree" if good else "NOT verified: engine and training differ")
    return 0 if good else 1


def describe(comparison: Comparison) -> str:
    """Three or four lines: what was exercised, and how far engine and training are apart."""
    c = comparison
    limit = "at most" if c.limited == "max" else "on average over sampled tokens"
    lines = [
        f"{c.name}: {c.num_blocks} blocks, {c.num_paths} paths, {c.num_sampled} sampled positions, {c.dtype}"
        f" -> {'ok' if c.ok else 'FAILED'}",
        f"  log-probabilities differ by at most {c.max_difference:.2e}, on average {c.mean_difference:.2e}, "
        f"over sampled tokens {c.sampled_difference:.2e} ({limit} {c.threshold:.0e} is allowed)",
        f"  {c.num_argmax_differences} other most probable tokens, {c.num_wrong_positions} wrong positions",
    ]
    if c.max_difference_to_training is not None:
        lines.append(
            f"  to the training mask {c.max_difference_to_training:.2e}: scheme original lets a path see the "
            "separators after earlier paths, which do not exist yet when paths are written in parallel"
        )
    return "\n".join(lines)


def _as_json(comparison: Comparison) -> str:
    return json.dumps({**asdict(comparison), "ok": comparison.ok})
