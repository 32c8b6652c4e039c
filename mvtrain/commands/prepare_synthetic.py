"""Write generated problems whose answers can be checked, in sequential and in parallel form."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mvtrain.folders import whole_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="JSONL file to write")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="how many problems (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other problems (default 0)")


def run(args: argparse.Namespace) -> int:
    from mvtrain.data.synthetic import problems

    if args.count < 1:
        raise ValueError(f"--count {args.count}: expected at least 1")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        for index, problem in enumerate(problems(args.count, args.seed)):
            file.write(json.dumps(problem.row(f"synthetic-{args.seed}-{index}")) + "\n")
    print(f"wrote {args.count} problems to {args.out}")
    return 0
