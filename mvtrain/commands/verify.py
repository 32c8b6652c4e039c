"""Compare the engine with the training forward pass, token by token, on generated and on scripted traces."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvtrain.engine.verification import Comparison

QUESTION = "A train leaves at 9:40 and arrives at 12:05. How long does it travel?"

TRACE = """<Think>
The journey can be cut at noon and at ten. Let's think in parallel.
<Parallel>
<Goal>
<Outline>
1: The time from 9:40 to 12:00
</Outline>
<Outline>
2: The time from 12:00 to 12:05
</Outline>
<Outline>
3: A check by minutes of the day
</Outline>
</Goal>
<Path>
1: This part again falls into two.
<Parallel>
<Goal>
<Outline>
1.1: From 9:40 to 10:00
</Outline>
<Outline>
1.2: From 10:00 to 12:00
</Outline>
</Goal>
<Path>
1.1: There are 60 minutes to an hour, so this takes 60 - 40 = 20 minutes.
</Path>
<Path>
1.2: These are two hours.
</Path>
<Conclusion>
Together two hours and 20 minutes.
</Conclusion>
</Parallel>
So the first part is 140 minutes long.
</Path>
<Path>
2: Five minutes.
</Path>
<Path>
3: 9:40 is minute 580 and 12:05 is minute 725. The difference is 725 - 580 = 145 minutes.
</Path>
<Conclusion>
140 + 5 = 145 minutes, and the check agrees.
</Conclusion>
</Parallel>
Now the answer in hours.
<Parallel>
<Goal>
<Outline>
1: Whole hours
</Outline>
<Outline>
2: Minutes that are left
</Outline>
</Goal>
<Path>
1: 145 / 60 is 2 and a rest.
</Path>
<Path>
2: 145 - 120 = 25.
</Path>
<Conclusion>
2 hours and 25 minutes.
</Conclusion>
</Parallel>
</Think>
Answer: 2 hours and 25 minutes
"""
"""Blocks in a row and a block in a path: what a scripted check has to go through."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a question; may be repeated")
    parser.add_argument("--dtype", choices=["fp32", "fp64", "bf16"], default="fp32", help="default: fp32")
    parser.add_argument("--scheme", choices=["isolated", "original"], help="default: what the checkpoint says")
    parser.add_argument("--max-tokens", type=int, default=64, help="of the answers the model writes (default: 64)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(args: argparse.Namespace) -> int:
    from mvtrain.engine import Engine, SamplingParams
    from mvtrain.engine.verification import verify_generation, verify_trace
    from mvtrain.grammar import parse

    engine = Engine.from_pretrained(args.checkpoint, args.dtype, scheme=args.scheme)
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
    lines = [
        f"{c.name}: {c.num_blocks} blocks, {c.num_paths} paths, {c.num_sampled} sampled positions, {c.dtype}"
        f" -> {'ok' if c.ok else 'FAILED'}",
        f"  log-probabilities differ by at most {c.max_difference:.2e}, on average {c.mean_difference:.2e} "
        f"({'at most' if c.limited == 'max' else 'on average'} {c.threshold:.0e} is allowed)",
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
