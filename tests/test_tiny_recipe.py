"""The tiny recipe's own commands, up to the launch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mvtrain.cli import main
from mvtrain.train.config import TrainConfig
from mvtrain.train.plan import make_plan

ROOT = Path(__file__).parents[1]


def test_checkpoint_and_data_of_the_tiny_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, str(ROOT / "examples" / "tiny_checkpoint.py"), "runs/tiny_ar"], check=True)
    assert main(["convert", "runs/tiny_ar", "runs/tiny"]) == 0
    assert main(["prepare", "synthetic", "runs/tiny.jsonl", "--count", "200"]) == 0
    recipe = ROOT / "launch" / "recipes" / "tiny_cpu.yaml"
    config = TrainConfig.parse([str(recipe), "--deepspeed", str(ROOT / "ds_configs" / "cpu.json")])
    plan = make_plan(config, world_size=2)
    assert len(plan.steps) == 20
    assert all(report.num_kept == 200 for report in plan.reports.values())
