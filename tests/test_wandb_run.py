"""The real wandb client, offline and against a server of our own on loopback; and how its mode is chosen."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvtrain.wandb_run import WandbRun, start_wandb
from tests.test_train_tracking import fake_wandb
from tests.wandb_server import wandb_server

ROOT = Path(__file__).parents[1]
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No variable of wandb, and a home without a netrc."""
    for name in ("API_KEY", "MODE", "BASE_URL", "IDENTITY_TOKEN_FILE", "ERROR_REPORTING", "SILENT"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def start(mode: str = "auto", folder: Path = Path()):
    return start_wandb(WandbRun(folder, "p", "n", "i", {}, mode))


def chosen_mode(monkeypatch, mode: str = "auto") -> str:
    seen = {"mode": "disabled"}
    fake_wandb(monkeypatch, lambda **given: seen.update(given))
    start(mode)
    return seen["mode"]


@pytest.mark.parametrize("asked", ["offline", "online", "disabled"])
def test_auto_is_what_the_environment_says(monkeypatch, asked):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", asked)
    assert chosen_mode(monkeypatch) == asked
    assert chosen_mode(monkeypatch, "offline") == "offline", "the recipe wins where it says something"
    monkeypatch.delenv("WANDB_MODE")
    assert chosen_mode(monkeypatch) == "online", "control"


def test_a_key_is_one_for_the_server_in_use(monkeypatch, tmp_path):
    netrc = tmp_path / "keys"
    netrc.write_text(f"machine wandb.example.org:8080 login user password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert chosen_mode(monkeypatch) == "offline", "a key for another server than wandb.ai"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")
    assert chosen_mode(monkeypatch) == "online"


PROGRAM = """
import json, os, sys, time
from pathlib import Path
from mvtrain import wandb_run
from mvtrain.train.processes import end_process
wandb_run.FINISH_SECONDS = 3
mode, folder = sys.argv[1:]
tracker = wandb_run.start_wandb(wandb_run.WandbRun(Path(folder), "p", "n", "abc12345", {"a": 1}, mode))
for step in range(4):
    tracker.log({"step": step, "loss": 0.5})
print("logged", flush=True)
sys.stdin.readline()
for step in range(4, 8):
    tracker.log({"step": step, "loss": 0.5})
tracker.close()
print("closed", flush=True)
end_process()
"""


def run_client(mode: str, folder: Path, between=lambda: None, **environment: str) -> tuple[str, float]:
    """Log through the real client, with something happening halfway: (its stderr, seconds it took)."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, mode, str(folder)],
        env={**os.environ, **environment},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "logged\n"
    between()
    output, errors = process.communicate("go on\n", timeout=100)
    assert (process.returncode, output) == (0, "closed\n"), errors
    return errors, time.monotonic() - began


def our_lines(errors: str) -> list[str]:
    """Without what wandb says itself when its service is slow to end."""
    return [line for line in errors.splitlines() if line.startswith("sft:")]


def recorded(folder: Path) -> bytes:
    """Of all records there: an attempt that failed leaves one too."""
    return b"".join(file.read_bytes() for file in folder.glob("wandb/*run-*/run-*.wandb"))


def test_a_server_that_accepts_gets_every_step(tmp_path):
    pytest.importorskip("wandb")
    with wandb_server(refuses=False) as server:
        errors, _ = run_client("auto", tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert errors == ""
    assert [json.loads(line)["step"] for line in server.history] == list(range(8))
    assert KEY.encode() not in recorded(tmp_path)


def test_a_refused_key_is_one_warning(tmp_path):
    pytest.importorskip("wandb")
    with wandb_server(refuses=True) as server:
        errors, seconds = run_client("auto", tmp_path, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert "/graphql" in server.asked
    (warning,) = our_lines(errors)
    assert "Failed to export" not in errors, "of wandb's reports on itself"
    assert warning.startswith("sft: warning: wandb not used: ") and "401" in warning and "`wandb sync`" in warning
    assert recorded(tmp_path).count(b"loss") >= 8
    assert seconds < 60


def test_a_server_that_dies_in_the_middle_costs_a_warning_at_the_end(tmp_path):
    pytest.importorskip("wandb")
    with wandb_server(refuses=False) as server:
        errors, seconds = run_client("auto", tmp_path, server.die, WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert len(server.history) < 8
    (warning,) = our_lines(errors)
    assert warning.startswith("sft: warning: wandb could not send everything: ")
    assert recorded(tmp_path).count(b"loss") >= 8, "the rest can be sent later"
    assert seconds < 60


def test_online_without_a_key_asks_nobody(tmp_path):
    """On a terminal wandb would ask for one, and a run in tmux would wait for ever."""
    pytest.importorskip("wandb")
    terminal, end = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("sys.stdin.readline()", ""), "online", str(tmp_path)],
        cwd=ROOT,
        stdin=end,
        stderr=end,
        stdout=subprocess.PIPE,
        timeout=60,
    )
    said = os.read(terminal, 100_000).decode()
    assert run.returncode == 0 and run.stdout == b"logged\nclosed\n", said
    (line,) = said.splitlines()
    assert "no API key for https://api.wandb.ai in WANDB_API_KEY or ~/.netrc; recording into" in line
    assert recorded(tmp_path).count(b"loss") >= 8
