"""Measure a checkpoint on problems with known answers: accuracy, form, parallelism and speed.

On several processes: deepspeed launch/evaluate.py CHECKPOINT --problems FILE [options].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine import Engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    parser.add_argument("--problems", required=True, metavar="FILE", help="JSONL with `question` and `answer`")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    parser.add_argument("--sequential", action="store_true", help="sequential prompt; tags are plain tokens")
    parser.add_argument("--alone", type=int, default=0, metavar="N", help="also time N problems one at a time")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="requests decoded at once (default 32)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default 0)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="limit on the critical path (default 1024)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: the checkpoint's own")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU for each process, where there is one)")
    parser.add_argument("--no-verify", action="store_true", help="skip the check that engine and training agree")
    parser.add_argument("--samples", metavar="FILE", help="write every graded response to this JSONL file")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    from mvtrain.engine import Engine, SamplingParams
    from mvtrain.evaluate.benchmark import read_problems, run_benchmark, summarise, time_alone, write_samples
    from mvtrain.evaluate.ranks import EvaluationRanks

    problems = read_problems(args.problems, args.limit)
    params = SamplingParams(
        temperature=args.temperature, seed=args.seed, max_tokens=args.max_tokens, parallel=not args.sequential
    )
    ranks = EvaluationRanks.from_environment()
    device = args.device or ranks.device
    engine = Engine.from_pretrained(args.checkpoint, dtype=args.dtype, device=device, max_batch=args.batch_size)
    checked = {} if args.no_verify else _verify(engine)
    engine.generate([problems[0].question], SamplingParams(max_tokens=4, parallel=not args.sequential))  # warm-up
    progress = _progress if ranks.is_first and sys.stderr.isatty() else None
    mine, seconds = run_benchmark(engine, ranks.share(problems), params, progress)
    shares = ranks.gather((mine, seconds))
    if shares is not None:
        samples = ranks.merge([share for share, _ in shares])
        seconds = max(took for _, took in shares)
        report = {"checkpoint": args.checkpoint, "parallel": not args.sequential, "ranks": ranks.world_size, **checked}
        report |= asdict(summarise(samples, seconds))
        if args.alone:
            alone = time_alone(engine, problems[: args.alone], params)
            report |= {"num_timed_alone": len(alone), "seconds_alone_median": statistics.median(alone)}
            report |= {"seconds_alone_mean": statistics.mean(alone)}
        if args.samples:
            write_samples(Path(args.samples), samples)
        print(json.dumps(report) if args.json else _table(report))
    ranks.close()
    return 0


def _verify(engine: Engine) -> dict[str, Any]:
    """Hold the engine against the training forward pass on a short nested trace, before anything is measured by it.

    Raises ValueError where they differ: no number would mean anything.
    """
    from mvtrain.engine.probe import QUESTION, SHORT_TRACE
    from mvtrain.engine.verification import verify_trace
    from mvtrain.grammar import parse

    comparison = verify_trace(engine, QUESTION, parse(SHORT_TRACE))
    if not comparison.ok:
        raise ValueError(
            f"engine and training differ: log-probabilities of sampled tokens by {comparison.sampled_difference:.2e}, "
            f"of any by {comparison.max_difference:.2e} ({comparison.dtype}, {comparison.limited} limited to "
            f"{comparison.threshold:.0e}); `mvtrain verify` says more, --no-verify evaluates nevertheless"
        )
    return {"verified": comparison.dtype, "max_difference_to_training": comparison.max_difference}


def _progress(done: int, total: int, num_tokens: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done}/{total} problems, {num_tokens} tokens", end=end, file=sys.stderr, flush=True)


def _table(report: dict) -> str:
    width = max(map(len, report))
    return "\n".join(f"{name:<{width}}  {_format(value)}" for name, value in report.items())


def _format(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
