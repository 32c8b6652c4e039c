"""launch/sft.sbatch with Slurm's commands replaced: when the job goes back into the queue.

tests/slurm/two_nodes.sh runs it in a real cluster.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "sft.sbatch"
COMMANDS = {
    "srun": 'echo "srun $*" >>"$CALLS"; bash -c "$TRAINER"',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "scontrol": 'echo "scontrol $*" >>"$CALLS"; exit 1',  # so that the script does not wait to be ended
}


@pytest.fixture
def job(tmp_path):
    """job(trainer, variables) -> (exit status, calls of Slurm's commands, what was printed)."""
    (tmp_path / "bin").mkdir()
    for name, line in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "traces.jsonl").write_text("")
    (tmp_path / "out").mkdir()
    recipe = tmp_path / "recipe.yaml"
    values = {
        "model": "model",
        "output_dir": "elsewhere",
        "data": {"parallel": "traces.jsonl"},
        "deepspeed": "recipe.yaml",
    }
    recipe.write_text(yaml.safe_dump(values))

    def run(trainer: str, script: Path = SCRIPT, **variables: str) -> tuple[int, str, str]:
        calls = tmp_path / "calls"
        calls.write_text("")
        known = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "CALLS": str(calls), "TRAINER": trainer}
        done = subprocess.run(
            ["bash", str(script), "recipe.yaml", "--output_dir", "out"],
            env={**known, **slurm, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.returncode, calls.read_text(), done.stdout + done.stderr

    return run


REQUEUED = "scontrol requeue 7"


@pytest.mark.parametrize("trainer", ["exit 75", "touch out/stopped.json; exit 75", "touch out/stopped.json; exit 1"])
def test_a_run_that_was_stopped_goes_back_into_the_queue(job, trainer):
    status, calls, printed = job(trainer)
    assert REQUEUED in calls, printed
    assert "job 7 goes back into the queue" in printed
    assert status == 75
    assert "python -u launch/sft.py recipe.yaml --output_dir out" in calls


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_run_that_ended_does_not_even_where_an_earlier_one_was_stopped(job, tmp_path, status):
    (tmp_path / "out" / "stopped.json").touch()
    found, calls, _ = job(f"exit {status}")
    assert found == status
    assert "requeue" not in calls


@pytest.mark.parametrize("variables", [{"STATE": "CANCELLED"}, {"SLURM_RESTART_COUNT": "100"}], ids=str)
def test_a_cancelled_job_and_one_that_never_gets_on_do_not(job, variables):
    assert "requeue" not in job("exit 75", **variables)[1]


def test_a_mistake_in_the_recipe_starts_nothing(job, tmp_path):
    (tmp_path / "recipe.yaml").write_text("modle: model\n")
    status, calls, printed = job("exit 0")
    assert status == 2
    assert calls == ""
    assert "sft: error: the configuration has mistakes" in printed


def test_with_the_launcher_of_deepspeed_its_own_status_does_not_matter(job, tmp_path):
    """What the script says to change for it, changed."""
    text = SCRIPT.read_text()
    first, second = re.findall(r"(?ms)^#?(?:scontrol show|srun ).*?^#?status=\$\?$", text)
    assert first.startswith("srun ") and second.startswith("#scontrol show")
    script = tmp_path / "deepspeed.sbatch"
    script.write_text(text.replace(first, "").replace(second, second.replace("\n#", "\n")[1:]))
    variables = {"SLURM_JOB_NODELIST": "node1", "SLURM_NODEID": "0"}
    _, calls, printed = job("touch out/stopped.json; exit 1", script, **variables)
    assert "exec deepspeed --hostfile" in calls and REQUEUED in calls, printed
    assert "requeue" not in job("exit 1", script, **variables)[1]
