"""The paper's claims at laptop scale: trains, evaluates, and writes a page of results with plots.

    python examples/reproduce.py --out runs/reproduction                 # what `make reproduce` does
    python examples/reproduce.py --quick --out runs/reproduction-quick
    python examples/reproduce.py --size core --seed 1 --out runs/reproduction-1   # another model, other problems
    python examples/reproduce.py --out runs/reproduction --beside runs/reproduction-1 --docs docs   # the page of both

Every step is a command that users run themselves; it is printed before it starts. Started again, finished steps are
passed over. The page and everything it was made from are in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import commands
from reproduction import experiments, models
from reproduction.models import Work
from reproduction.plan import SIZES

from mvtrain.folders import write_whole
from mvtrain.provenance import processor


def main() -> int:
    args = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices so small are slower in two threads
    work = Work(Path(args.out), SIZES[args.size], args.seed)
    work.out.mkdir(parents=True, exist_ok=True)
    _refuse_another(work)
    commands.record = work.out / "commands.txt"
    results = _finished(work) or reproduce(work)
    others = [json.loads((Path(folder) / "results.json").read_text(encoding="utf-8")) for folder in args.beside]
    write(results, others, work.out, "reproduction.md", "images", "images")
    if args.docs:
        write(results, others, Path(args.docs), "reproduction.md", "images/reproduction", "images/reproduction")
    print(f"\nThe page is {work.out / 'reproduction.md'}.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/reproduction", help="folder for everything (default runs/reproduction)")
    parser.add_argument("--size", choices=SIZES, default="full", help="smoke only shows that all of it runs")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="the same as --size quick")
    parser.add_argument("--seed", type=int, default=0, help="of weights, shuffling and problems (default 0)")
    parser.add_argument("--beside", nargs="*", default=[], metavar="DIR", help="finished runs of other seeds")
    parser.add_argument("--docs", metavar="DIR", help="write the page and its plots here as well")
    return parser.parse_args()


def _refuse_another(work: Work) -> None:
    """A folder holds one size and one seed: finished steps of another would be taken for this one's."""
    file, own = work.out / "plan.json", {"size": work.size.name, "seed": work.seed}
    if file.exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        if there != own:
            raise SystemExit(f"{work.out} holds a run of {there}, not of {own}; give another --out")
    file.write_text(json.dumps(own) + "\n", encoding="utf-8")


def _finished(work: Work) -> dict[str, Any] | None:
    """What an earlier run has left: it is written last, so only the page is made again."""
    file = work.out / "results.json"
    if not file.exists():
        return None
    print(f"{work.out} is finished: only its page is written. Remove {file} to measure again.")
    return json.loads(file.read_text(encoding="utf-8"))


def reproduce(work: Work) -> dict[str, Any]:
    """All steps, in order; their results and minutes as `results.json` holds them."""
    clock = Clock(work.out / "minutes.json")
    clock("problems", lambda: models.prepare(work))
    clock("base", lambda: models.make_base(work))
    clock("fine-tuning, two models", lambda: models.tune(work))
    for name in work.size.ablations:
        clock(f"fine-tuning, {name}", lambda name=name: models.ablation(work, name))
    for count in work.size.transfer:
        clock(f"fine-tuning, {count} examples", lambda count=count: models.transfer(work, count))
    results = {
        "size": work.size.name,
        "seed": work.seed,
        "command": f"python examples/reproduce.py --size {work.size.name} --seed {work.seed} --out {work.out}",
        "machine": processor(),
        "date": str(date.today()),
        "table_2": clock("accuracy", lambda: experiments.table_2(work)),
        "difference": clock("accuracy", lambda: experiments.difference(work, "autoregressive", "multiverse:parallel")),
        "growth": clock("growth", lambda: experiments.growth(work)),
        "ablations": {
            name: clock("ablations, evaluation", lambda name=name: experiments.in_parallel(work, name))
            for name in work.size.ablations
        },
        "transfer": {
            count: clock("transfer, evaluation", lambda count=count: experiments.transferred(work, count))
            for count in work.size.transfer
        },
        **clock("time", lambda: experiments.speed(work)),
    }
    results["minutes"] = clock.minutes
    results["commands"] = (work.out / "commands.txt").read_text(encoding="utf-8").splitlines()
    text = json.dumps(results, indent=1)
    write_whole(work.out / "results.json", text + "\n")
    return json.loads(text)


class Clock:
    """Minutes by step, over all starts of a run."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.minutes: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = step()
        self.minutes[name] = self.minutes.get(name, 0.0) + (time.monotonic() - began) / 60
        write_whole(self.file, json.dumps(self.minutes, indent=1) + "\n")
        return result


def write(results: dict, others: list[dict], folder: Path, name: str, images: str, shown: str) -> None:
    from reproduction.page import page
    from reproduction.plots import draw

    draw(results, folder / images)
    (folder / name).write_text(page(results, shown, others), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
