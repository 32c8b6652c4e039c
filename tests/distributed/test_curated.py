"""What the curator makes is trained on: a run on two real processes, with both forms of the same file."""

from __future__ import annotations

import json

import pytest

from mvtrain.cli import main
from tests import curate_model
from tests.chat_server import ChatServer
from tests.curate_chains import CHAINS
from tests.distributed.runs import launch_sft, write_recipe

pytest.importorskip("deepspeed")
pytest.importorskip("openai")


def test_curated_traces_train(tmp_path):
    chains, out = tmp_path / "chains.jsonl", tmp_path / "curated"
    chains.write_text("".join(json.dumps(chain.row()) + "\n" for chain in CHAINS))
    with ChatServer(curate_model.competent) as server:
        assert main(["curate", str(chains), str(out), "--model", "played", "--base-url", server.url]) == 0
    traces = str(out / "traces.jsonl")
    data = {"parallel": [traces], "sequential": [traces], "curriculum": "eight_phase"}
    recipe = write_recipe(tmp_path, tied=True, data=data, context=2200, max_steps=30, learning_rate=5e-3)
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    steps = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    assert len(losses) > 5 and losses[-1] < losses[0] - 1, losses
    assert steps[0]["parallel_share"] == 0 and max(step["parallel_share"] for step in steps) > 0.3
