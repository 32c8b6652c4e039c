"""Measure a checkpoint on problems with known answers: accuracy, form, parallelism, speed, and a report of all answers.

The same command goes on where a run was interrupted. On several processes: deepspeed launch/evaluate.py CHECKPOINT ...
Also: mvtrain evaluate compare A B | regrade RUN | report RUN | overlap TRAINING --task TASK (each with --help).
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine import Engine
    from mvtrain.evaluate.config import EvaluationConfig
    from mvtrain.evaluate.evaluation import Evaluation, Tasks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvtrain evaluate CHECKPOINT --task TASK [options]"
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30, width=120)
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    add = parser.add_argument_group("what").add_argument
    add("--task", action="append", default=[], metavar="TASK", dest="tasks",
        help="aime24, aime25, math500, gpqa_diamond, gsm8k, or a JSONL file of problems; may be repeated")  # fmt: skip
    add("--problems", action="append", default=[], metavar="FILE", dest="tasks", help="the same as --task FILE")
    add("--data-dir", metavar="DIR", help="local copies of the tasks, DIR/math500.jsonl and so on (default: the hub)")
    add("--limit", type=int, metavar="N", help="only the first N problems of each task")
    add("--modes", default="parallel", metavar="LIST",
        help="parallel (default), unasked: blocks run, but nobody asks for them, sequential: none runs")  # fmt: skip
    add("--sequential", action="store_const", const="sequential", dest="modes", help="the same as --modes sequential")
    # Not --n: the launcher of DeepSpeed takes that for one of its own options, wherever it stands.
    add("--samples", type=int, default=1, metavar="N", dest="n", help="answers to each problem (default: 1)")
    add("--budgets", metavar="LIST", default="", help="critical paths at which to give accuracy, such as 1024,2048")
    add("--budget-policy", choices=["wrong", "forced"], default="wrong", dest="policy",
        help="what is cut at a budget is wrong (default), or closed there and asked for its answer")  # fmt: skip
    add("--answer-tokens", type=int, default=64, metavar="N", help="room for a forced answer (default: 64)")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    add("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    add("--top-k", type=int, default=0, help="sample from so many tokens (default: 0, all)")
    add("--seed", type=int, default=0, help="of the first answer (default: 0)")
    add("--max-tokens", type=int, default=4096, help="limit on the critical path (default: 4096)")
    add = parser.add_argument_group("engine").add_argument
    add("--batch-size", type=int, default=32, metavar="N", help="answers that are written at a time (default: 32)")
    add("--scheme", choices=["isolated", "original"], help="default: what the checkpoint says")
    add("--dtype", choices=["bf16", "fp16", "fp32"], help="default: the checkpoint's own")
    add("--device", help="cpu or cuda (default: a GPU for each process, where there is one)")
    add("--no-verify", action="store_true", help="skip the check that engine and training agree")
    add = parser.add_argument_group("output").add_argument
    add("--out", metavar="DIR", help="folder of the run (default: runs/evaluate/CHECKPOINT-TASKS)")
    add("--overwrite", action="store_true", help="start anew in a folder that holds another run")
    add("--no-report", action="store_true", help="no report.html and report.md")
    add("--no-tokens", action="store_true", help="do not keep positions and visibility of tokens for the viewer")
    add("--alone", type=int, default=0, metavar="N", help="also time N problems one at a time, in every mode")
    add("--wandb", metavar="PROJECT", help="log results, table and plots to this Weights & Biases project")
    add("--json", action="store_true", help="print the results as one JSON object")


def run(args: argparse.Namespace) -> int:
    config = _config(args)
    tasks = _tasks(args)
    from mvtrain.engine import Engine
    from mvtrain.evaluate.consistency import check_consistency
    from mvtrain.evaluate.evaluation import Evaluation
    from mvtrain.evaluate.ranks import EvaluationRanks

    ranks = EvaluationRanks.from_environment()
    device = args.device or ranks.device
    engine = Engine.from_pretrained(args.checkpoint, args.dtype, device, args.scheme, args.batch_size)
    verified = "skipped" if args.no_verify else check_consistency(engine)
    out = args.out or _default_folder(args.checkpoint, list(tasks))
    evaluation = Evaluation(
        engine, args.checkpoint, tasks, config, out, ranks, verified=verified, overwrite=args.overwrite
    )
    try:
        evaluation.run()
        if ranks.is_first:
            if args.alone:
                evaluation.note_alone(_time_alone(engine, config, tasks, args.alone))
            _tell(evaluation, args, str(out))
    except KeyboardInterrupt:
        print(f"evaluate: what is answered is kept in {out}; the same command goes on from there", file=sys.stderr)
        raise
    finally:
        evaluation.close()
    ranks.close()
    return 0


def _tell(evaluation: Evaluation, args: argparse.Namespace, out: str) -> None:
    """Write results and report, print them, log them."""
    samples = evaluation.samples()
    results = evaluation.write_results(samples, report=not args.no_report)
    summary = {"checkpoint": args.checkpoint, "out": out, "ranks": evaluation.ranks.world_size, **results}
    print(json.dumps(summary) if args.json else _describe(out, results, args))
    _log_to_wandb(args.wandb, out, evaluation.header, results, samples)


def _config(args: argparse.Namespace) -> EvaluationConfig:
    from mvtrain.evaluate.config import EvaluationConfig

    for flag, value, least in (("--alone", args.alone, 0), ("--batch-size", args.batch_size, 1)):
        if value < least:
            raise ValueError(f"{flag} {value}: expected at least {least}")
    try:
        budgets = tuple(int(budget) for budget in args.budgets.split(",") if budget.strip())
    except ValueError:
        raise ValueError(f"--budgets {args.budgets}: expected numbers of tokens, such as 1024,2048,4096") from None
    return EvaluationConfig(
        modes=tuple(mode.strip() for mode in args.modes.split(",") if mode.strip()),
        n=args.n,
        seed=args.seed,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_tokens=args.max_tokens,
        budgets=budgets,
        policy=args.policy,
        answer_tokens=args.answer_tokens,
        keep_tokens=not args.no_tokens,
    )


def _tasks(args: argparse.Namespace) -> Tasks:
    from mvtrain.evaluate.tasks import load_task

    if not args.tasks:
        raise ValueError("no task; give --task math500, another name (see --help), or a file of problems")
    tasks: dict[str, tuple[str, Any]] = {}
    for source in args.tasks:
        problems = load_task(source, args.data_dir, args.limit)
        name = problems[0].task
        if name in tasks:
            raise ValueError(f"two tasks are called {name}: {tasks[name][0]} and {source}; rename one of the files")
        tasks[name] = (source, problems)
    return tasks


def _default_folder(checkpoint: str, tasks: list[str]) -> Path:
    """The same for the same checkpoint and tasks, so that the same command goes on."""
    parts = [part for part in Path(checkpoint).parts[-3:] if part not in ("/", "..", "runs", "export")]
    return Path("runs", "evaluate", "-".join([*parts, *tasks]))


def _time_alone(engine: Engine, config: EvaluationConfig, tasks: Tasks, count: int) -> list[dict[str, Any]]:
    """Seconds for the first problems of every task when each is the only request."""
    from mvtrain.evaluate.generation import time_alone

    timed = []
    for task, (_, problems) in tasks.items():
        for mode in config.modes:
            seconds = time_alone(engine, config, task, mode, problems[:count])
            median = statistics.median(seconds)
            timed.append({"task": task, "mode": mode, "num_problems": len(seconds), "seconds_median": median})
    return timed


def _describe(out: Path | str, results: dict[str, Any], args: argparse.Namespace) -> str:
    from mvtrain.evaluate.summary_text import describe_results

    lines = [describe_results(results)]
    lines += [f"{t['task']}, {t['mode']}: alone {t['seconds_median']:.2f} s a problem" for t in results["alone"]]
    report = "" if args.no_report else f"; open {Path(out) / 'report.html'}"
    return "\n".join([*lines, f"{out}: samples.jsonl, results.json{report}"])


def _log_to_wandb(project: str | None, out: Any, header: Any, results: Any, samples: Any) -> None:
    if project:
        from mvtrain.evaluate.tracking import log_evaluation

        print(f"logging to W&B project {project}", file=sys.stderr)
        log_evaluation(project, Path(out), header, results, samples)
