"""A user's mistake is told, whichever rank finds it, and once where all do; each rank is a process."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import GPT2Config

from mvtrain.train import run
from mvtrain.train.mistakes import complain
from mvtrain.train.trainer import Trainer
from tests.distributed.runs import ROOT, free_port, launch_sft, parse, write_recipe

pytest.importorskip("deepspeed")

HERE = socket.gethostname()


def run_sft(folders: list[Path], recipe: Path) -> tuple[list[int], list[str], float]:
    """A rank in each folder, that nobody watches: exit statuses, what they say on stderr, and the seconds it took."""
    began = time.monotonic()
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(folders))}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "sft.py"), str(recipe)],
            env={
                **os.environ,
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": f"{folder / 'packages'}{os.pathsep}{ROOT}",
            },
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(folders)
    ]
    try:
        errors = [rank.communicate(timeout=100)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert "Traceback" not in "".join(errors), errors
    return [rank.returncode for rank in ranks], errors, time.monotonic() - began


@pytest.fixture
def folders(tmp_path):
    """A working directory for each of two ranks, both with the data."""
    traces = (write_recipe(tmp_path, tied=True).parent / "traces.jsonl").read_text()
    found = [tmp_path / f"rank-{rank}" for rank in range(2)]
    for folder in found:
        folder.mkdir()
        (folder / "own.jsonl").write_text(traces)
    return found


@pytest.fixture
def recipe(folders, tmp_path):
    return write_recipe(tmp_path, tied=True, data={"parallel": ["own.jsonl"]}, max_steps=1)


def lose_data(folder: Path) -> str:
    (folder / "own.jsonl").unlink()
    return "no such file: own.jsonl"


def break_row(folder: Path) -> str:
    lines = (folder / "own.jsonl").read_text().splitlines()
    lines[3] = lines[3].replace("<Conclusion>", "")
    (folder / "own.jsonl").write_text("\n".join(lines) + "\n")
    return "own.jsonl row 4"


@pytest.mark.parametrize(("spoil", "ranks_there"), [(lose_data, 2), (break_row, 1)])
def test_a_mistake_on_one_host_is_told_there_and_ends_the_run(folders, recipe, spoil, ranks_there):
    """The first rank, with nothing to complain of, does not wait out its patience of 300 seconds either."""
    words = spoil(folders[1])
    statuses, errors, seconds = run_sft([folders[0], *[folders[1]] * ranks_there], recipe)
    assert set(statuses) == {2}
    told = [text for text in errors[1:] if "error: " in text]
    assert len(told) == 1, "one of the host's ranks speaks"
    assert re.search(rf"^sft: rank [12] on {HERE}: error: ", told[0], re.MULTILINE)
    assert words in told[0]
    assert re.search(rf"^sft: error: rank [12] on {HERE} cannot take part: ", errors[0], re.MULTILINE)
    assert words in errors[0]
    assert seconds < 90


def test_a_mistake_that_all_make_is_told_once(folders, recipe):
    (words,) = {lose_data(folder) for folder in folders}
    statuses, errors, _ = run_sft(folders, recipe)
    assert statuses == [2, 2]
    assert errors[0].count("sft: error: ") == 1 and words in errors[0]
    assert errors[1] == ""


def test_ranks_with_different_mistakes_tell_both(folders, recipe):
    for rank, folder in enumerate(folders):
        (folder / "own.jsonl").unlink()
        (folder / "packages").mkdir()
        # Another flag for each rank, so that their messages differ.
        (folder / "packages" / "sitecustomize.py").write_text(
            f"import sys; sys.argv += ['--data.sequential', 'of-{rank}.jsonl']"
        )
    statuses, errors, seconds = run_sft(folders, recipe)
    assert statuses == [2, 2]
    assert "sft: error: " in errors[0] and "of-0.jsonl" in errors[0]
    assert f"sft: rank 1 on {HERE}: error: " in errors[1] and "of-1.jsonl" in errors[1]
    assert seconds < 60


def test_the_launcher_too_shows_it_once(recipe):
    done = launch_sft(recipe, "--contxt", "3")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "did you mean context?" in done.stderr


def test_a_missing_package_is_a_mistake_too(folders, recipe):
    (folders[0] / "packages").mkdir()
    (folders[0] / "packages" / "deepspeed.py").write_text("raise ImportError('none here')")
    statuses, errors, _ = run_sft(folders[:1], recipe)
    assert statuses == [2]
    assert "sft: error: training needs deepspeed; install it with `pip install 'mvtrain[train]'`" in errors[0]


def eight_ranks(monkeypatch) -> None:
    """As a launcher would say it; nothing is started."""
    for name, value in {"RANK": 0, "WORLD_SIZE": 8, "LOCAL_RANK": 0, "MASTER_ADDR": "x", "MASTER_PORT": 1}.items():
        monkeypatch.setenv(name, str(value))


def test_heads_that_cannot_be_divided_are_refused_before_the_start(tmp_path, monkeypatch):
    eight_ranks(monkeypatch)
    recipe = write_recipe(tmp_path, tied=True, sequence_parallel_size=8)
    with pytest.raises(ValueError, match="4 query heads and 2 key heads cannot be divided among 8 ranks"):
        Trainer(parse(recipe))


def test_a_model_with_another_head_is_refused_before_the_start(tmp_path, monkeypatch):
    eight_ranks(monkeypatch)
    recipe = write_recipe(tmp_path, tied=True)
    small = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=300)
    small.save_pretrained(parse(recipe).model)
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not supported"):
        Trainer(parse(recipe))


def test_deepspeed_settings_with_an_unknown_key_end_in_status_2(tmp_path):
    settings = tmp_path / "ds.json"
    settings.write_text('{"zero_optimization": {"stage": 3, "overlap_com": true}}')
    statuses, errors, _ = run_sft([tmp_path], write_recipe(tmp_path, tied=True, deepspeed=str(settings)))
    assert statuses == [2]
    assert errors[0].count("error: ") == 1
    assert f"{settings}: zero_optimization.overlap_com: unknown key" in errors[0]


def test_no_secret_is_told(tmp_path, monkeypatch, capsys):
    """Not as a mistake, nor in a note, nor with a traceback, nor by --dry-run."""
    eight_ranks(monkeypatch)
    secret = "hf_0123456789"
    monkeypatch.setenv("HF_TOKEN", secret)
    recipe = write_recipe(tmp_path, tied=True, output_dir=str(tmp_path / secret))
    complain(f"no such file: {secret}", for_all=True)
    trainer = Trainer(parse(recipe, "--dry-run"))
    trainer.dry_run()
    trainer.progress.note(f"saved {secret}")

    class Fails:
        def __init__(self, *arguments) -> None:
            self.ranks = trainer.ranks

        def train(self) -> None:
            raise RuntimeError(f"cannot open https://me:pass@host/{secret}")

        def fail(self, error: BaseException) -> None:
            pass

    monkeypatch.setattr(run, "Trainer", Fails)
    monkeypatch.setattr(run, "end_process", sys.exit)
    monkeypatch.setattr(run.StopSignals, "install", lambda signals: None)
    with pytest.raises(SystemExit):
        run.run(parse(recipe))
    said = "".join(capsys.readouterr())
    for words in (
        "no such file: ***",
        f'"{tmp_path}/***"',
        "saved ***",
        "RuntimeError: cannot open https://***@host/***",
    ):
        assert words in said, words
    assert secret not in said
