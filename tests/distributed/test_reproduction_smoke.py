"""The reproduction at its smallest: every command, table and plot; nothing is learnt in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def reproduce(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    """Into `r` of a folder that is not the project's root."""
    command = [sys.executable, str(ROOT / "examples" / "reproduce.py"), "--out", "r", *flags]
    return subprocess.run(command, cwd=folder, text=True, capture_output=True)


def test_the_whole_chain_at_its_smallest(tmp_path):
    done = reproduce(tmp_path, "--size", "smoke", "--docs", "docs")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((tmp_path / "r" / "results.json").read_text())
    page = (tmp_path / "docs" / "reproduction.md").read_text()
    assert page == (tmp_path / "r" / "reproduction.md").read_text().replace("(images/", "(images/reproduction/")
    for title in ("What holds", "Accuracy (table 2)", "Time (figure 8)", "What it took"):
        assert f"## {title}\n" in page
    for name in ("budgets", "growth", "latency", "batches"):
        assert (tmp_path / "docs" / "images" / "reproduction" / f"{name}.svg").read_text().count("<path") > 10
    assert set(results["table_2"]) == {"base", "autoregressive", "multiverse"}
    log = [json.loads(line) for line in (tmp_path / "r" / "multiverse" / "log.jsonl").read_text().splitlines()]
    assert "phase 8" in log[-1]["phase"] and json.loads((tmp_path / "r" / "base" / "mvtrain.json").read_text())["tags"]

    again = reproduce(tmp_path, "--size", "smoke")
    assert again.returncode == 0 and "is finished: only its page is written" in again.stdout
    other = reproduce(tmp_path, "--size", "smoke", "--seed", "1")
    assert other.returncode == 1 and "give another --out" in other.stderr
