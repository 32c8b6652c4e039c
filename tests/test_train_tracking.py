"""What is logged, and that tracking never stops a run."""

from __future__ import annotations

import io
import json
import sys
import types
from pathlib import Path

import pytest

from mvtrain.train.config import TrainConfig, WandbConfig
from mvtrain.train.progress import Progress, duration
from mvtrain.train.tracking import NoTracker, StepLog, WandbTracker, start_tracker
from mvtrain.wandb_run import WandbRun

RECORD = {"step": 1, "phase": "epoch 1", "loss": 2.5, "tokens_per_s": 1234.0, "fill": 0.98, "seconds": 2.0}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration that asks for wandb; the values that only matter elsewhere are not checked."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return TrainConfig.model_construct(output_dir=str(tmp_path / "out"), wandb=WandbConfig(project="p"))


def fake_wandb(monkeypatch, init):
    def start(**given):
        init(**given)
        return types.SimpleNamespace(define_metric=lambda *names, **options: None)

    module = types.SimpleNamespace(init=start, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_no_project_means_no_wandb(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config.wandb = WandbConfig()
    tracker = start_tracker(config, "id1")
    assert type(tracker) is NoTracker
    tracker.log(RECORD)
    tracker.close()


def test_a_missing_wandb_is_one_warning(config, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert type(start_tracker(config, "id1")) is NoTracker
    warning = capsys.readouterr().err
    assert warning.count("warning") == 1
    assert "wandb not used" in warning


@pytest.mark.parametrize(("key", "mode"), [(None, "offline"), ("a-key", "online")])
def test_without_a_key_it_is_offline(config, monkeypatch, key, mode):
    seen = {}
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    fake_wandb(monkeypatch, lambda **given: seen.update(given))
    start_tracker(config, "id1")
    assert seen["mode"] == mode
    assert "a-key" not in json.dumps(seen["config"])


def test_a_key_in_netrc_counts(config, monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    seen = {}
    fake_wandb(monkeypatch, lambda **given: seen.update(given))
    start_tracker(config, "id1")
    assert seen["mode"] == "online"


def test_a_failing_wandb_warns_once_and_hides_the_key(config, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")

    def fail(**given):
        raise RuntimeError("bad key s3cr3t")

    fake_wandb(monkeypatch, fail)
    assert type(start_tracker(config, "id1")) is NoTracker
    text = capsys.readouterr().err
    assert "bad key ***" in text
    assert "s3cr3t" not in text


def test_a_run_that_breaks_later_is_left_alone(capsys):
    calls = []

    class Run:
        def log(self, numbers):
            calls.append(numbers)
            raise OSError("disk full")

        def finish(self):
            raise AssertionError("not called after a failure")

    tracker = WandbTracker(Run(), WandbRun(Path(), "p", "n", "i", {}))
    for _ in range(3):
        tracker.log(RECORD)
    tracker.close()
    assert len(calls) == 1
    assert calls[0]["step"] == 1
    assert "phase" not in calls[0]
    assert capsys.readouterr().err.count("disk full") == 1


def test_the_log_goes_on_where_the_run_does(tmp_path):
    log = StepLog(tmp_path)
    for step in (1, 2, 3):
        log.write({"step": step, "try": 1})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "tr')
    log = StepLog(tmp_path, first_step=2)
    log.write({"step": 3, "try": 2})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "try": 1}, {"step": 2, "try": 1}, {"step": 3, "try": 2}]


def test_progress_in_a_file_is_a_line_each_log_every():
    stream = io.StringIO()
    progress = Progress(5, every=2, stream=stream)
    for step in range(1, 6):
        progress.show({**RECORD, "step": step})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "step 2/5  epoch 1  loss 2.5000  1,234 tokens/s  fill 98%  ETA 6s"
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]


def test_progress_on_a_terminal_is_one_line():
    stream = io.StringIO()
    stream.isatty = lambda: True
    progress = Progress(3, every=2, stream=stream)
    for step in range(1, 4):
        progress.show({**RECORD, "step": step})
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.count("\r") == 3
    assert text.endswith("\n")


def test_other_ranks_say_nothing():
    Progress(3, every=1, stream=None).show(RECORD)


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12s"), (135, "2m15s"), (7500, "2h05m"), (59.6, "1m00s")])
def test_duration(seconds, text):
    assert duration(seconds) == text
