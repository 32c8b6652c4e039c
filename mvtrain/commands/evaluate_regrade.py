"""Grade the answers of a finished or interrupted evaluation again, without generating anything.

Useful after a change of the grader. Says which samples are graded otherwise than before, and writes results and report.
"""

from __future__ import annotations

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", help="folder of an evaluation")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    parser.add_argument("--no-report", action="store_true", help="no report.html and report.md")
    parser.add_argument("--json", action="store_true", help="print one JSON object: the changes")


def run(args: argparse.Namespace) -> int:
    from mvtrain.evaluate.regrading import regrade
    from mvtrain.evaluate.run_folder import open_run

    folder = open_run(args.run)
    with folder.locked():
        samples, changes = regrade(list(folder.samples()))
        if not args.dry_run:
            from mvtrain.evaluate.evaluation import config_of, write_results

            header = folder.header()
            folder.replace(samples)
            write_results(folder, header, samples, config_of(header), report=not args.no_report)
    if args.json:
        print(json.dumps({"num_samples": len(samples), "changes": [change.as_dict() for change in changes]}))
        return 0
    for change in changes:
        print(change)
    what = "would change" if args.dry_run else "changed"
    print(f"{len(changes)} of {len(samples)} grades {what}", file=sys.stderr if args.dry_run else sys.stdout)
    return 0
