"""What an evaluation logs to Weights & Biases: through the real client, to a server on the loopback network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvtrain.evaluate.tracking import COLUMNS, curves, figures
from tests.report_samples import HEADER, make_run
from tests.wandb_server import wandb_server

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from pathlib import Path
from mvtrain.evaluate.tracking import log_evaluation
from tests.report_samples import HEADER, make_run
log_evaluation("p", Path(sys.argv[1]), HEADER, *make_run(3, 40))
"""


def test_figures_and_curves_are_those_of_the_results():
    results, _ = make_run(3, 40)
    logged = dict(figures(results))
    for group in results["groups"]:
        avg = group["measures"]["avg"]
        name = f"{group['task']}/{group['mode']}/avg"
        assert [logged[name], logged[f"{name}/low"], logged[f"{name}/high"]] == [
            avg[k] for k in ("value", "low", "high")
        ]
    points = {
        (point["budget"], curve["mode"]): point["accuracy"]["value"]
        for curve in results["budgets"]
        for point in curve["points"]
    }
    found = {
        (budget, name.split("/")[1]): value
        for budget, accuracies in curves(results).items()
        for name, value in accuracies.items()
    }
    assert found == points and len({budget for budget, _ in points}) == 3


def log(folder: Path, **environment: str) -> None:
    pytest.importorskip("wandb")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr


def test_a_server_gets_figures_and_curves(tmp_path):
    with wandb_server(refuses=False) as server:
        log(tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY="k" * 40)
    results, _ = make_run(3, 40)
    rows = [json.loads(line) for line in server.history]
    logged = {name: value for row in rows for name, value in row.items()}
    assert {name: logged[name] for name, _ in figures(results)} == dict(figures(results))
    charted = {row["budget"]: {k: v for k, v in row.items() if "at budget" in k} for row in rows}
    assert {budget: values for budget, values in charted.items() if values} == curves(results)


def test_without_a_network_table_and_report_are_kept_to_be_sent_later(tmp_path):
    (tmp_path / "report.html").write_text("<p>a report</p>")
    log(tmp_path, WANDB_MODE="offline")
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    (table,) = media.glob("table/samples_*.json")
    _, samples = make_run(3, 40)
    content = json.loads(table.read_text())
    assert content["columns"] == list(COLUMNS)
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in content["data"]]
    for name in ("id", "correct", "response"):
        assert [row[name] for row in rows] == [getattr(sample, name) for sample in samples]
    (page,) = media.glob("html/report_*.html")
    assert page.read_text() == "<p>a report</p>"
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert HEADER["command"].encode() in record.read_bytes()
