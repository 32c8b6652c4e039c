"""Write results and report of an evaluation again, also of one that is not finished yet."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of an evaluation")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object")


def run(args: argparse.Namespace) -> int:
    import json

    from mvtrain.evaluate.evaluation import config_of, write_results
    from mvtrain.evaluate.run_folder import open_run
    from mvtrain.evaluate.summary_text import describe_results

    folder = open_run(args.run)
    with folder.locked():
        header, samples = folder.header(), list(folder.samples())
        if not samples:
            raise ValueError(f"{args.run} has no finished sample yet")
        results = write_results(folder, header, samples, config_of(header))
    print(json.dumps(results) if args.json else f"{describe_results(results)}\n{folder.path / 'report.html'}")
    return 0
