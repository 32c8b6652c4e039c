"""The reproduction's arithmetic and page, on values worked out by hand; tests/distributed has all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def examples_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A small plan whose trainings are only noted down."""
    from reproduction import models, plan

    trained = {}
    monkeypatch.setattr(models, "train", lambda work, name, *args, **kwargs: trained.update({name: (args, kwargs)}))
    monkeypatch.setattr(models, "tokens_of", lambda work, name: 123)
    monkeypatch.setattr(models, "run", lambda *command, **options: None)
    found = models.Work(tmp_path, plan.SMOKE)
    return found, trained


def test_every_ablation_is_the_reference_but_for_one_thing(work, tmp_path):
    from reproduction import models, plan

    found, trained = work
    (tmp_path / "base").mkdir()
    rows = torch.arange(40.0).reshape(10, 4)
    save_file(
        {"model.embed_tokens.weight": rows, "model.norm.weight": rows[0].clone()},
        tmp_path / "base" / "model.safetensors",
    )
    (tmp_path / "base" / "mvtrain.json").write_text(json.dumps({"tags": {"<Path>": 7, "</Path>": 9}}))
    for name in plan.ABLATIONS:
        models.ablation(found, name)
    assert set(trained) == set(plan.ABLATIONS)
    _, start, tokens, sequential, parallel, flags = trained["reference"][0]
    assert (tokens, flags, sequential) == (None, [], parallel) and start == str(tmp_path / "base")
    changed = {name: [a != b for a, b in zip(args, trained["reference"][0], strict=True)]
               for name, (args, _) in trained.items()}  # fmt: skip
    assert changed == {
        "reference": [False] * 6,
        "original": [False] * 5 + [True],
        "causal": [False] * 5 + [True],
        "parallel_only": [False, False, True, True, False, True],  # and as many tokens
        "same_rows": [False, True, False, False, False, False],
        "fast_rows": [False] * 5 + [True],
    }
    after = load_file(tmp_path / "base_same_rows" / "model.safetensors")
    expected = rows.clone()
    expected[[7, 9]] = rows[:7].mean(dim=0)
    assert torch.equal(after["model.embed_tokens.weight"], expected)
    assert torch.equal(after["model.norm.weight"], rows[0])


def test_transfer_takes_as_many_examples_as_it_says(work):
    from reproduction import models

    found, trained = work
    models.transfer(found, 70)
    _, kwargs = trained["transfer_70"]
    assert kwargs["parallel"] == ["mixed_70", "sat_70"] and "sequential" not in kwargs


def test_a_line_and_an_exponential_are_told_apart():
    from reproduction.claims import fit

    line, power = fit([2, 3, 4, 5], [10, 13, 16, 19]), fit([2, 3, 4, 5], [12, 24, 48, 96])
    assert line.slope == pytest.approx(3) and line.linear == pytest.approx(1) and line.exponential < 0.995
    assert fit([2, 3], [7, 7]).slope == 0
    assert power.ratio == pytest.approx(2) and power.exponential == pytest.approx(1) and power.linear < 0.95


def estimate(value: float, width: float = 0.05) -> dict:
    return {"value": value, "low": value - width, "high": value + width}


def run(task: str, mode: str, accuracy: float, parallelism: float = 1.0, tokens: float = 0, path: float = 0) -> dict:
    measures = {"avg": estimate(accuracy), "parallelism": estimate(parallelism), "well_formed": estimate(1.0)}
    return {"task": task, "mode": mode, "measures": {**measures, "generated_tokens": tokens,
                                                     "critical_path_tokens": path}}  # fmt: skip


def made_up(multiverse: float = 0.95, growth: float = 39) -> dict:
    """Results in which everything that is claimed holds."""
    tasks = ("test_mixed", "test_sat")
    curve = [
        {"task": task, "mode": mode, "points": [
            {"budget": budget, "accuracy": estimate(value)} for budget, value in ((64, early), (512, 0.9))
        ]}
        for task in tasks for mode, early in (("parallel", 0.9), ("sequential", 0.1))
    ]  # fmt: skip
    models = {
        "base": [run(task, "sequential", 0.1) for task in tasks],
        "autoregressive": [run(task, "sequential", 0.95) for task in tasks],
        "multiverse": [
            run(task, mode, multiverse, parallelism)
            for task in tasks
            for mode, parallelism in (("parallel", 3.0), ("unasked", 1.1), ("sequential", 1.0))
        ],
    }
    lengths = {n: (126 * 2 ** (n - 2), 60 + growth * (n - 2)) for n in (2, 3, 4, 5)}
    return {
        "seed": 0,
        "table_2": {name: {"groups": groups, "budgets": curve} for name, groups in models.items()},
        "difference": [
            {"task": task, "accuracy": {"difference": gap, "low": gap - 0.05, "high": gap + 0.05}}
            for task in tasks
            for gap in (multiverse - 0.95,)
        ],
        "growth": {
            "autoregressive": {
                "groups": [run(f"test_sat_{n}", "sequential", 0.95, 1, a, a) for n, (a, _) in lengths.items()]
            },
            "multiverse": {
                "groups": [run(f"test_sat_{n}", "parallel", 0.95, 3, 1.3 * a, b) for n, (a, b) in lengths.items()]
            },
        },
        "alone": [{"parallelism": p, "speed_up": 0.95 * p} for p in (1.0, 2.0, 4.0)],
        "in_batches": [{"batch": 8, "parallelism": 3.0, "speed_up": 1.5}],
        "transfer": {"1000": {"groups": [run(task, "parallel", 0.95, 3.0) for task in tasks]}},
    }  # fmt: skip


def test_what_is_claimed_holds_where_it_does_and_only_there():
    from reproduction.claims import claims

    assert [claim.text for claim in claims(made_up()) if claim.holds is not True] == []
    worse = {claim.text for claim in claims(made_up(multiverse=0.6)) if claim.holds is False}
    assert worse == {f"{task}: Multiverse answers as well as Autoregressive" for task in ("mixed", "sat")}
    steep = {claim.text for claim in claims(made_up(growth=150)) if claim.holds is False}
    assert steep == {"from n = 4 the critical path is at most a third, at 90% right and more"}
    slow = made_up()
    slow["alone"] = [{"parallelism": 4.0, "speed_up": 2.0}]
    slow["in_batches"][0]["speed_up"] = 0.9
    assert [claim.source for claim in claims(slow) if claim.holds is False] == ["figure 8a", "figure 8b"]
    forgetful = made_up()
    forgetful["table_2"]["multiverse"]["groups"][1]["measures"]["avg"] = estimate(0.5)
    assert [claim.text for claim in claims(forgetful) if claim.holds is False] == [
        "mixed: without the instruction Multiverse answers about as well"
    ]
    slow_to_learn = made_up()
    slow_to_learn["transfer"]["1000"]["groups"][0]["measures"]["avg"] = estimate(0.5)
    assert [claim.source for claim in claims(slow_to_learn) if claim.holds is False] == ["rapid transfer"]
    assert claims(made_up() | {"transfer": {}})[-1].holds is None
    shrinking = made_up()
    shrinking["table_2"]["multiverse"]["groups"][0]["measures"]["parallelism"] = estimate(1.1)
    assert [claim.text[:17] for claim in claims(shrinking) if claim.holds is False] == ["parallelism above"]


def test_a_page_of_two_seeds_says_for_each_what_holds():
    from reproduction.page import page

    results = made_up() | {
        "size": "full", "command": "c", "machine": "m", "date": "d", "parameters": 500_000, "minutes": {"base": 3.0},
        "ablations": {}, "commands": ["deepspeed --master_port 123 launch/sft.py R"],
    }  # fmt: skip
    results["in_batches"][0] |= {
        name: 1.0 for name in ("tokens_per_second", "tokens_per_second_sequential", "tokens_per_second_transformers")
    }
    other = json.loads(json.dumps(results)) | {"seed": 1, "alone": [{"parallelism": 4.0, "speed_up": 2.0}]}
    text = page(results, "images", [other])
    assert "| found (seed 0) | holds | found (seed 1) | holds |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| figure 8a |")]
    assert line.endswith("| **no** |") and "| yes | median 0.50 times" in line
    assert "\ndeepspeed launch/sft.py R\n" in text
