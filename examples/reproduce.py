"""The paper's claims at laptop scale: trains, evaluates, and writes a page of results with plots.

    python examples/reproduce.py --out runs/reproduction                 # what `make reproduce` does
    python examples/reproduce.py --quick --out runs/reproduction-quick
    python examples/reproduce.py --size core --seed 1 --out runs/reproduction-1   # another model, other problems
    python examples/reproduce.py --size core --validate --out runs/choice    # to choose sizes and rates on
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
from reproduction.plan import SIZES, as_told

from mvtrain.folders import write_whole
from mvtrain.provenance import processor

PAGE, RESULTS = "reproduction.md", "results.json"


def main() -> int:
    args = _arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # matrices so small are slower in two threads
    work = Work(Path(args.out).absolute(), SIZES[args.size], args.seed, "validate" if args.validate else "test")
    plan = as_told(work.size, work.seed, work.held_out)
    others = [earlier(Path(folder)) for folder in args.beside]
    refuse_unlike(plan, [other["plan"] for other in others])
    begin(work.out, plan)
    commands.record = work.out / "commands.txt"
    results = finished(work.out) or reproduce(work, plan)
    write(results, others, work.out, "images")
    if args.docs:
        write(results, others, Path(args.docs), "images/reproduction")
    print(f"\nThe page is {work.out / PAGE}.")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/reproduction", help="folder for everything (default runs/reproduction)")
    parser.add_argument("--size", choices=SIZES, default="full", help="smoke only shows that all of it runs")
    parser.add_argument("--quick", action="store_const", const="quick", dest="size", help="the same as --size quick")
    parser.add_argument("--seed", type=int, default=0, help="of weights, shuffling and problems (default 0)")
    parser.add_argument("--validate", action="store_true",
        help="answer problems kept apart for the choice of sizes and rates, and never the test's")  # fmt: skip
    parser.add_argument("--beside", nargs="*", default=[], metavar="DIR", help="finished runs of other seeds")
    parser.add_argument("--docs", metavar="DIR", help="write the page and its plots here as well")
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f"--seed {args.seed}: expected 0 or more")
    for name in ("out", "docs"):
        if (given := getattr(args, name)) and Path(given).exists() and not Path(given).is_dir():
            parser.error(f"--{name} {given}: is a file, expected a folder")
    return args


def begin(out: Path, plan: dict[str, Any]) -> None:
    """A folder holds one plan: finished steps of another would be taken for this one's."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "plan.json"
    there = _read(file) if file.exists() else plan
    if there != plan:
        differ = [name for name in {**plan, **there} if there.get(name) != plan.get(name)]
        raise SystemExit(f"{out} was begun with another {', '.join(differ)} (plan.json there); give another --out")
    write_whole(file, json.dumps(plan, indent=1) + "\n")


def finished(out: Path) -> dict[str, Any] | None:
    """What an earlier run has left: it is written last, so only the page is made again."""
    file = out / RESULTS
    if not file.exists():
        return None
    print(f"{out} is finished: only its page is written. Remove {file} to measure again.")
    return earlier(out)


def earlier(folder: Path) -> dict[str, Any]:
    """The results of a finished run. Raises SystemExit where there are none."""
    file = folder / RESULTS
    if not file.exists():
        raise SystemExit(f"{folder} holds no finished run: there is no {RESULTS}; finish it first, with --out {folder}")
    results = _read(file)
    if set(results.get("plan", {})) != set(as_told(SIZES["full"], 0, "test")) or "tokens" not in results:
        raise SystemExit(f"{file}: of another version of this program; run it again into an empty folder")
    return results


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{file}: not JSON ({error}); it is damaged, so remove it and start again") from None
    if not isinstance(found, dict):
        raise SystemExit(f"{file}: expected a JSON object; it is damaged, so remove it and start again")
    return found


def refuse_unlike(plan: dict[str, Any], others: list[dict[str, Any]]) -> None:
    """Runs stand beside each other where nothing but the seed, and what was left out, differs."""
    left_out = ("name", "ablations", "transfer")
    seeds = [one["seed"] for one in (plan, *others)]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"--beside: runs of the seeds {', '.join(map(str, seeds))}; expected another seed for each")
    for other in others:
        differ = [name for name in ("difficulties", "folds", "held_out") if other[name] != plan[name]]
        sizes = [
            name for name in plan["size"] if name not in left_out and other["size"].get(name) != plan["size"][name]
        ]
        if differ or sizes:
            raise SystemExit(f"--beside: the run of seed {other['seed']} has another {', '.join(differ + sizes)}")


def reproduce(work: Work, plan: dict[str, Any]) -> dict[str, Any]:
    """All steps, in order; their results and minutes as `results.json` holds them."""
    clock = Clock(work.out / "minutes.json")
    clock("problems", lambda: models.prepare(work))
    clock("base", lambda: models.make_base(work))
    clock("fine-tuning, two models", lambda: models.tune(work))
    for name in work.size.ablations:
        clock(f"fine-tuning, {name}", lambda name=name: models.ablation(work, name))
    for count in work.size.transfer:
        clock(f"fine-tuning, {count} examples", lambda count=count: models.transfer(work, count))
    fewer = [f"transfer_{count}" for count in work.size.transfer]
    results = {
        "plan": plan,
        "command": commands.as_typed([sys.executable, *sys.argv]),
        "machine": processor(),
        "date": str(date.today()),
        "table_2": clock("accuracy", lambda: experiments.table_2(work)),
        "difference": clock("accuracy", lambda: experiments.difference(work, "autoregressive", "multiverse:parallel")),
        "unasked": clock("accuracy", lambda: experiments.difference(work, "multiverse:parallel", "multiverse:unasked")),
        "growth": clock("growth", lambda: experiments.growth(work)),
        "few": {
            name: clock("fewer examples, evaluation", lambda name=name: experiments.in_parallel(work, name))
            for name in (*work.size.ablations, *fewer)
        },
        "against_reference": {
            name: clock("fewer examples, evaluation", lambda name=name: experiments.difference(work, "reference", name))
            for name in work.size.ablations[1:]
        },
        "reference_against_all": clock(
            "fewer examples, evaluation",
            lambda: experiments.difference(work, "multiverse:parallel", "reference") if work.size.ablations else [],
        ),
        **clock("time", lambda: experiments.speed(work)),
    }
    names = ("base", "autoregressive", "multiverse", *results["few"])
    results["kinds"] = {name: experiments.kinds(work, name) for name in names}
    results["tokens"] = {name: models.tokens_of(work, name) for name in names[1:]}
    results["best_constant"] = {task: experiments.best_constant(work, task) for task in plan["difficulties"]["tested"]}
    results["minutes"] = clock.minutes
    results["commands"] = (work.out / "commands.txt").read_text(encoding="utf-8").splitlines()
    text = json.dumps(results, indent=1)
    write_whole(work.out / RESULTS, text + "\n")
    return json.loads(text)


class Clock:
    """Minutes by step, over all starts of a run."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.minutes: dict[str, float] = _read(file) if file.exists() else {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.monotonic()
        try:
            return step()
        finally:  # also where it was interrupted
            self.minutes[name] = self.minutes.get(name, 0.0) + (time.monotonic() - began) / 60
            write_whole(self.file, json.dumps(self.minutes, indent=1) + "\n")


def write(results: dict, others: list[dict], folder: Path, images: str) -> None:
    """The page and its plots, which go to the folder `images` within."""
    from reproduction.page import page
    from reproduction.plots import draw

    draw(results, folder / images)
    docs = os.path.relpath(commands.ROOT / "docs", folder.absolute())
    write_whole(folder / PAGE, page(results, images, others, "" if docs == "." else f"{docs}/"))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on where it stopped")
