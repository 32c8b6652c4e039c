"""From token ids to all that a training step needs on the host: labels, positions, layout and plan, on one core.

python benchmarks/collation.py
python benchmarks/collation.py --lengths 32768 131072
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.layouts import SHAPES, TAGS, synthetic_ids
from benchmarks.measure import peak_mib, seconds, write_results
from mvtrain.attention import cost
from mvtrain.attention.plan import Geometry
from mvtrain.data.collate import collate
from mvtrain.data.examples import Example

CPU = torch.device("cpu")
HEADS = cost.Heads(num_heads=40, num_key_heads=8, width=128, num_bytes=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32768], help="tokens of a pack")
    parser.add_argument("--turns", type=int, default=11, help="times are medians over so many (default 11)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [_measure(shape, length, options.turns) for shape in SHAPES for length in options.lengths]
    command = " ".join(["python benchmarks/collation.py", *sys.argv[1:]])
    write_results("collation", "Collation of one pack, one core", command, CPU, rows)


def _measure(shape: str, length: int, turns: int) -> dict:
    examples = [
        Example(np.array(ids, dtype=np.int32), min(100, len(ids) - 1), "parallel", f"{shape} {number}")
        for number, ids in enumerate(synthetic_ids(shape, length))
    ]
    batch, geometry, plan = _collate_and_plan(examples)
    times = [seconds(lambda: _collate_and_plan(examples), CPU)[0] for _ in range(turns)]
    collate_times = [seconds(lambda: collate(examples, TAGS), CPU)[0] for _ in range(turns)]
    return {
        "layout": shape,
        "tokens": batch.num_tokens,
        "documents": len(batch.layout.documents),
        "runs": len(geometry.runs),
        "levels": f"{plan.levels} of {geometry.max_levels}",
        "batch and layout ms": statistics.median(collate_times) * 1e3,
        "with plan ms": statistics.median(times) * 1e3,
        "peak MiB above the ids": peak_mib(lambda: _collate_and_plan(examples), CPU),
    }


def _collate_and_plan(examples: list[Example]):
    batch = collate(examples, TAGS)
    geometry = Geometry(batch.layout)
    return batch, geometry, geometry.plan(cost.choose_levels(geometry, HEADS, cost.CUDA))


if __name__ == "__main__":
    main()
