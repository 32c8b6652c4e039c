"""Compare two evaluations on the problems that both have answered. Differences are B - A, with intervals.

Give a mode after a colon to compare modes: `mvtrain evaluate compare RUN:sequential RUN:parallel`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mvtrain.evaluate.records import Sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("a", metavar="A", help="folder of an evaluation, perhaps with :MODE")
    parser.add_argument("b", metavar="B", help="another one, or the same with another mode")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    from mvtrain.evaluate.compare import as_table, compare
    from mvtrain.evaluate.grading import same_answer

    (label_a, a), (label_b, b) = _read(args.a), _read(args.b)
    if label_a == label_b:
        label_a, label_b = args.a, args.b
    comparisons = compare(a, b, same_answer)
    if args.json:
        print(json.dumps({"a": args.a, "b": args.b, "comparisons": [asdict(c) for c in comparisons]}))
    else:
        print(as_table(comparisons, label_a, label_b))
    return 0


def _read(name: str) -> tuple[str, list[Sample]]:
    """A label, and the samples of a run, or those of one of its modes."""
    from mvtrain.evaluate.records import MODES
    from mvtrain.evaluate.run_folder import open_run

    folder, colon, mode = name.rpartition(":")
    if colon and mode not in MODES and not Path(name).exists() and Path(folder).is_dir():
        raise ValueError(f"{name}: no mode is called {mode!r}; choose one of {', '.join(MODES)}")
    if not (colon and mode in MODES):
        folder, mode = name, ""
    samples = [s for s in open_run(folder).samples(with_tokens=False) if not mode or s.mode == mode]
    if not samples:
        raise ValueError(f"{folder} has no sample" + (f" in mode {mode}" if mode else ""))
    return Path(folder).name + (f", {mode}" if mode else ""), samples
