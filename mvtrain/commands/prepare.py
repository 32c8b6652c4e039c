"""Write training data: traces of public formats as traces of ours, or the eight-phase mixed set.

  mvtrain prepare --from npr FILE --out traces.jsonl
  mvtrain prepare --mixture SEQUENTIAL PARALLEL --out mixed.jsonl
  mvtrain prepare synthetic OUT           (generated problems; has its own --help)

Rows that are left out stand in OUT.rejected.jsonl with the reasons. Exit status: 0, or 1 if no row could be written.
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from mvtrain.data.importers import FORMATS

    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = "mvtrain prepare (--from FORMAT FILE | --mixture FILE [FILE]) --out OUT [options]"
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--from", dest="format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    what.add_argument("--mixture", nargs="+", metavar="FILE", help="sequential and parallel set, or one with both")
    parser.add_argument("file", nargs="?", metavar="FILE", help="of --from: JSON Lines or parquet")
    parser.add_argument("--out", metavar="OUT", help="JSON Lines to write")
    parser.add_argument("--question-column", metavar="NAME", help="of --from; `a.b` is field b of column a")
    parser.add_argument("--response-column", metavar="NAME", help="likewise; defaults are in docs/prepare.md")
    parser.add_argument("--answer-column", metavar="NAME", help="likewise")
    parser.add_argument("--require-conclusion", action="store_true", help="of --from: refuse blocks without one")
    parser.add_argument("--seed", type=int, default=42, help="of --mixture: of the shuffling (default 42)")
    parser.add_argument(
        "--malformed",
        choices=("error", "skip"),
        default="error",
        help="of --mixture: stop at a bad row, or leave it out",
    )
    parser.add_argument("--chat", metavar="FOLDER", help="of --mixture: add `text`, ready for this tokenizer")
    parser.add_argument(
        "--overlap", action="append", default=[], metavar="TASK", help="report 13-grams of a task or file; repeatable"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="local copies of the tasks (default: the hub)")
    parser.add_argument("--drop-overlap", action="store_true", help="leave out rows that have an evaluation problem")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    if args.drop_overlap and not args.overlap:
        raise ValueError("--drop-overlap needs --overlap TASK: what not to have")
    if args.format:
        from mvtrain.commands.prepare_import import run_import

        return run_import(args)
    from mvtrain.commands.prepare_mixture import run_mixture

    if args.file:
        raise ValueError(f"{args.file}: the files of --mixture follow it, before other options")
    return run_mixture(args)
