"""What is measured, each by `mvtrain evaluate`: the results of one run of every model, as plain data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from commands import run

from mvtrain.folders import write_whole
from reproduction.models import Work
from reproduction.plan import GROWTH, TESTED

BUDGETS = (32, 48, 64, 72, 80, 96, 128, 160, 192, 256, 384, 512, 768)
"""Critical paths at which accuracy is compared."""
BATCH = 50

Results = dict[str, Any]


def table_2(work: Work) -> dict[str, Results]:
    """Model -> results on the held-out problems of every task."""
    tasks = [f"test_{task}" for task in TESTED]
    budgets = ["--budgets", ",".join(str(budget) for budget in BUDGETS if budget <= work.size.max_tokens)]
    return {
        "base": evaluate(work, "base", tasks, "sequential", *budgets),
        "autoregressive": evaluate(work, "autoregressive", tasks, "sequential", *budgets),
        "multiverse": evaluate(work, "multiverse", tasks, "parallel,unasked,sequential", *budgets),
    }


def growth(work: Work) -> dict[str, Results]:
    """Model -> results at every number of variables."""
    tasks = [f"test_sat_{variables}" for variables in GROWTH]
    return {
        "autoregressive": evaluate(work, "autoregressive", tasks, "sequential", run_name="growth_autoregressive"),
        "multiverse": evaluate(work, "multiverse", tasks, "parallel,sequential", run_name="growth_multiverse"),
    }


def in_parallel(work: Work, name: str) -> Results:
    """One model of the ablations or of the transfer, asked to think in parallel."""
    scheme = ["--scheme", "isolated"] if name == "causal" else []
    return evaluate(work, name, [f"test_{task}" for task in TESTED], "parallel", "--no-report", *scheme)


def kinds(work: Work, name: str) -> list[Results]:
    """Of a model's answers, by task, mode and kind of problem: how many, how many right, well-formed in blocks."""
    lines = (work.out / "evaluate" / name / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[tuple[str, ...], Results] = {}
    for row in map(json.loads, lines):
        key = (row["task"], row["mode"], row["meta"]["kind"])
        counts = found.setdefault(
            key,
            {"task": key[0], "mode": key[1], "kind": key[2], "problems": 0, "right": 0, "in_blocks": 0},
        )
        counts["problems"] += 1
        counts["right"] += row["correct"] is True
        counts["in_blocks"] += row["num_blocks"] > 0 and row["well_formed"]
    return [found[key] for key in sorted(found)]


def best_constant(work: Work, task: str) -> float:
    """How many of the held-out problems the same answer to all of them would get right, at best."""
    lines = work.file(f"test_{task}").read_text(encoding="utf-8").splitlines()
    answers = Counter(json.loads(line)["answer"] for line in lines)
    return answers.most_common(1)[0][1] / len(lines)


def evaluate(work: Work, name: str, tasks: Sequence[str], modes: str, *flags: str, run_name: str = "") -> Results:
    """The results of one command; what an earlier run of it has answered is not asked again."""
    command = ["mvtrain", "evaluate", str(work.model(name))]
    for task in tasks:
        command += ["--task", str(work.file(task))]
    command += ["--modes", modes, "--max-tokens", str(work.size.max_tokens), "--batch-size", str(BATCH), "--json"]
    command += ["--out", str(work.out / "evaluate" / (run_name or name)), *flags]
    return json.loads(run(*command, capture=True).strip().splitlines()[-1])


def difference(work: Work, a: str, b: str) -> list[dict[str, Any]]:
    """By task: accuracy of run b less that of run a, on the same problems, with its interval. A run is `MODEL:MODE`."""
    folders = [str(work.out / "evaluate" / run_name) for run_name in (a, b)]
    told = run("mvtrain", "evaluate", "compare", *folders, "--json", capture=True)
    return json.loads(told.strip().splitlines()[-1])["comparisons"]


def speed(work: Work) -> Results:
    """Seconds of single answers and of batches, and the model's size; measured once."""
    file = work.out / "speed.json"
    if not file.exists():
        from reproduction import speed as measure  # torch

        found = {"alone": measure.alone(work), "in_batches": measure.in_batches(work)}
        found["parameters"] = measure.num_parameters(work)
        write_whole(file, json.dumps(found, indent=1) + "\n")
    return json.loads(file.read_text(encoding="utf-8"))
