"""`deepspeed launch/evaluate.py`: two real processes find what one finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvtrain.cli import main
from mvtrain.evaluate.ranks import EvaluationRanks
from tests.distributed.runs import launch
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("qwen2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rows = [{"id": f"p{k}", "question": "why" + "?" * k, "answer": str(k)} for k in range(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_two_ranks_report_what_one_reports(checkpoint, problems, tmp_path, capsys):
    flags = ["--task", problems, "--max-tokens", "8", "--temperature", "1", "--dtype", "fp32", "--no-report", "--json"]
    flags += ["--samples", "2", "--budgets", "4", "--budget-policy", "forced", "--answer-tokens", "4"]
    run = launch("evaluate.py", checkpoint, *flags, "--out", str(tmp_path / "two"))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    two = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    assert main(["evaluate", checkpoint, *flags, "--out", str(tmp_path / "one")]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (two["ranks"], one["ranks"]) == (2, 1) and one["groups"][0]["num_samples"] == 10
    assert one["budgets"] == two["budgets"] and len(one["budgets"]) == 2
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == ["results.json", "run.json", "samples.jsonl"]
    assert without_times(tmp_path / "two") == without_times(tmp_path / "one")
    assert len(without_times(tmp_path / "one")) == 20, "two samples of five problems, each forced as well"


def without_times(folder) -> list[dict]:
    """The samples without what depends on the machine and on the batch around them: rounding, for probabilities."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        del row["tokens"]["passes"], row["tokens"]["logprobs"]
    return [{name: value for name, value in row.items() if not name.startswith("seconds")} for row in rows]


def test_tasks_of_a_slurm_step_share_the_problems(checkpoint, problems, tmp_path):
    """`srun` sets no RANK: without its own variables read, each task would answer everything into the same folder."""
    flags = ["--task", problems, "--max-tokens", "4", "--dtype", "fp32", "--no-report", "--json", "--no-verify"]
    script = str(Path(__file__).parents[2] / "launch" / "evaluate.py")
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}
    slurm |= {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, script, checkpoint, *flags, "--out", str(tmp_path)],
            env=os.environ | slurm | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (task.communicate(timeout=120)[0] for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0]
    results = json.loads(first.splitlines()[-1])
    assert (results["ranks"], results["groups"][0]["num_samples"], second) == (2, 5, "")


def test_a_mistake_ends_both_ranks_without_a_traceback(checkpoint):
    run = launch("evaluate.py", checkpoint, "--task", "no/such/file")
    assert run.returncode != 0 and "no such file" in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(("world_size", "count"), [(1, 5), (2, 5), (3, 2), (4, 8)])
def test_shares_are_disjoint_complete_and_even(world_size, count):
    shares = [EvaluationRanks(rank, world_size).share(list(range(count))) for rank in range(world_size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
