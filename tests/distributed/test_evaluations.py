"""Evaluations while training: on real ranks, and without any effect on what is trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.runs import launch_sft, log_of, write_recipe

pytest.importorskip("deepspeed")
TIMES = ("seconds", "tokens_per_s", "rss", "mfu")


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    file = tmp_path_factory.mktemp("problems") / "ticks.jsonl"
    file.write_text(
        "".join(json.dumps({"id": f"p{k}", "question": f"{k}?", "answer": str(k)}) + "\n" for k in range(3))
    )
    return str(file)


def without_times(log: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith(TIMES)} for line in log]


@pytest.mark.parametrize("stage", [3, 0])
def test_training_with_evaluations_is_training_without(tmp_path, problems, stage):
    """Two ranks, an evaluation every 2 of 3 steps and at the end: same losses and weights, bit for bit."""
    common = {"zero_stage": stage, "max_steps": 3, "tag_learning_rate": 2e-3}
    evaluate = {"every_steps": 2, "task": problems, "max_tokens": 6, "modes": ["parallel", "sequential"]}
    plain = write_recipe(tmp_path, tied=True, output_dir=str(tmp_path / "plain"), **common)
    watched = write_recipe(tmp_path, tied=True, output_dir=str(tmp_path / "watched"), evaluate=evaluate, **common)
    for recipe in (plain, watched):
        run = launch_sft(recipe)
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "evaluated after step 2: ticks/parallel/avg 0" in run.stdout
    assert without_times(log_of(tmp_path / "plain")) == without_times(log_of(tmp_path / "watched"))
    a, b = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("plain", "watched"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = (tmp_path / "watched" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]
    assert {"evaluate/ticks/parallel/avg", "evaluate/ticks/sequential/parallelism"} <= json.loads(lines[0]).keys()
    folder = tmp_path / "watched" / "evaluations" / "step-000002"
    assert sorted(file.name for file in folder.iterdir()) == ["results.json", "run.json", "samples.jsonl"]
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 6
    assert not list((tmp_path / "plain").glob("evaluations*"))


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        ({"every_steps": 2}, "evaluate.every_steps needs evaluate.task"),
        ({"every_steps": 2, "task": "no/such.jsonl"}, "no such file: no/such.jsonl"),
        ({"every_steps": 2, "task": "math5"}, "evaluate.task: math5: no such file, and no task of that name"),
        ({"every_steps": 2, "tasks": "x"}, "did you mean evaluate.task?"),
    ],
)
def test_mistakes_are_told_before_training(tmp_path, evaluate, message):
    run = launch_sft(write_recipe(tmp_path, tied=True, evaluate=evaluate), ranks=1)
    assert run.returncode != 0 and message in run.stderr and "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()
