"""Write training and evaluation data. `synthetic` generates problems whose answers can be checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    synthetic = sources.add_parser("synthetic", help="problems with independent parts, sequential and parallel form")
    synthetic.add_argument("out", help="JSONL file to write")
    synthetic.add_argument("--count", type=int, default=1000, metavar="N", help="how many problems (default 1000)")
    synthetic.add_argument("--seed", type=int, default=0, help="another seed gives other problems (default 0)")


def run(args: argparse.Namespace) -> int:
    from mvtrain.data.synthetic import problems

    if args.count < 1:
        raise ValueError(f"--count {args.count}: expected at least 1")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        for index, problem in enumerate(problems(args.count, args.seed)):
            file.write(json.dumps(problem.row(f"synthetic-{args.seed}-{index}")) + "\n")
    partial.replace(out)
    print(f"wrote {args.count} problems to {out}")
    return 0
