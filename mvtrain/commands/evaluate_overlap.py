"""List the problems of evaluation tasks of which training data has runs of 13 words: contamination.

Exit status: 0 if there are none, 1 if there are. Paraphrases and translations are not seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict

from mvtrain.data.trace_files import read_rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("training", nargs="+", metavar="FILE", help="training data: JSON Lines, parquet or text")
    parser.add_argument(
        "--task", action="append", default=[], required=True, dest="tasks", metavar="TASK",
        help="as in `mvtrain evaluate`; may be repeated",
    )  # fmt: skip
    parser.add_argument("--data-dir", metavar="DIR", help="local copies of the tasks (default: the hub)")
    parser.add_argument("--words", type=int, default=13, metavar="N", help="length of a run (default: 13)")
    parser.add_argument(
        "--boilerplate", type=int, default=3, metavar="N",
        help="runs that so many problems share are phrases, not looked for; 0: look for all (default: 3)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from mvtrain.evaluate.tasks import load_task
    from mvtrain.overlap import describe, find_overlaps

    tasks = [load_task(task, args.data_dir) for task in args.tasks]
    problems = [(f"{p.task}/{p.id}", p.question) for task in tasks for p in task]
    report = find_overlaps(_texts(args.training), problems, args.words, boilerplate=args.boilerplate or None)
    print(json.dumps(asdict(report)) if args.json else describe(report))
    return 1 if report.overlaps else 0


def _texts(files: list[str]) -> Iterator[tuple[str, str]]:
    """Every text of every row: questions, traces and answers alike."""
    for file in files:
        for row in read_rows(file):
            if row.fault is not None:
                raise ValueError(f"{row}: {row.fault}")
            yield str(row), "\n".join(value for value in row.fields.values() if isinstance(value, str))
