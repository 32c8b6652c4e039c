"""Which checkpoint a run goes on from when some are damaged, cannot be read, or are of a run with another beginning."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from mvtrain.train import bad_steps, resume
from mvtrain.train.bad_steps import BadSteps, TooManyBadSteps
from mvtrain.train.checkpoint import prune
from mvtrain.train.checkpoint_files import damage, seal
from mvtrain.train.config import ConfigError
from tests.alone import Alone


def config(out: Path, resume_from: str | Path = "auto", **changes) -> SimpleNamespace:
    values = {"output_dir": str(out), "resume": str(resume_from), "keep": 2, "keep_every_steps": 0, **changes}
    return SimpleNamespace(**values)


def checkpoint(out: Path, step: int, **changes) -> Path:
    folder = out / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "weights.pt").write_text(f"weights of step {step}")
    state = {"step": step, "world_size": 1, "zero_stage": 0, "identity": {}, "run_id": "r", **changes}
    state["files"] = seal([folder / "weights.pt"])
    (folder / "trainer.json").write_text(json.dumps(state))
    return folder


def names(out: Path) -> list[str]:
    return sorted(folder.name.removeprefix("step-") for folder in (out / "checkpoints").iterdir())


def choose(settings: SimpleNamespace, notes: list[str] | None = None) -> Path | None:
    found = resume.candidates(settings)
    return resume.first_undamaged(settings, found, Alone(), (notes if notes is not None else []).append)


def test_damaged_ones_are_set_aside_where_there_is_a_whole_one(tmp_path):
    whole, bad = checkpoint(tmp_path, 4), checkpoint(tmp_path, 8)
    (bad / "weights.pt").write_text("weights of step 9")
    notes = []
    assert choose(config(tmp_path), notes) == whole
    assert "step-000008 is damaged: weights.pt is not what was saved (checksum)" in notes[0]
    assert names(tmp_path) == ["000004", "000008.damaged"]


def test_no_checkpoint_is_a_new_run(tmp_path):
    assert choose(config(tmp_path)) is None


def test_where_all_are_damaged_nothing_is_trained_and_nothing_renamed(tmp_path):
    for step in (4, 8):
        (checkpoint(tmp_path, step) / "weights.pt").write_text("")
    for _ in range(2):  # the second time as the first
        with pytest.raises(ConfigError, match=r"no checkpoint in .* is whole \(damaged: step-000008, step-000004\)"):
            choose(config(tmp_path))
        assert names(tmp_path) == ["000004", "000008"]
    (tmp_path / "checkpoints" / "step-000008").rename(tmp_path / "checkpoints" / "step-000008.damaged")
    (tmp_path / "checkpoints" / "step-000004" / "trainer.json").unlink()
    with pytest.raises(ConfigError, match="is whole"):
        resume.candidates(config(tmp_path))


def unreadable(file: Path) -> None:
    """Reading it gives EIO, as of a broken disk."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


def test_a_file_that_cannot_be_read_is_not_damage(tmp_path):
    checkpoint(tmp_path, 4)
    folder = checkpoint(tmp_path, 8)
    unreadable(folder / "weights.pt")
    with pytest.raises(OSError, match="Input/output error"):
        damage(folder, {"weights.pt": [1, 2]})
    with pytest.raises(ConfigError, match=r"rank 0 cannot read .*step-000008.*: Input/output error; it may be whole"):
        choose(config(tmp_path))
    assert names(tmp_path) == ["000004", "000008"]
    unreadable(folder / "trainer.json")
    with pytest.raises(ConfigError, match="Input/output error"):
        choose(config(tmp_path))
    assert names(tmp_path) == ["000004", "000008"]


@pytest.fixture
def named(tmp_path):
    """The checkpoint that `resume` names, and how checkpoints say that they descend from it."""
    folder = checkpoint(tmp_path / "first", 8)
    return folder, {"resumed_from": resume.descends_from(folder, config(tmp_path, folder))}


def test_a_named_checkpoint_is_the_beginning_until_there_are_newer_ones(tmp_path, named):
    folder, origin = named
    out = tmp_path / "out"
    assert choose(config(out, folder)) == folder
    tenth = checkpoint(out, 10, **origin)
    assert choose(config(out, folder)) == tenth
    assert resume.descends_from(tenth, config(out, folder)) == origin["resumed_from"]
    twelfth = checkpoint(out, 12, **origin)
    assert resume.candidates(config(out, folder)) == [twelfth, tenth, folder]
    (twelfth / "weights.pt").write_text("")
    assert choose(config(out, folder)) == tenth
    assert choose(config(out)) == tenth, "auto goes on as well, and keeps the origin"
    assert resume.descends_from(tenth, config(out)) == origin["resumed_from"]


@pytest.mark.parametrize("others", [{}, {"resumed_from": None}, {"resumed_from": {"fingerprint": "0123456789abcdef"}}])
def test_checkpoints_that_do_not_descend_from_the_named_one_are_refused(tmp_path, named, others):
    folder, origin = named
    out = tmp_path / "out"
    checkpoint(out, 10, **others)
    with pytest.raises(ConfigError, match="went further than step 8"):
        resume.candidates(config(out, folder))
    checkpoint(out, 12, **origin)
    with pytest.raises(ConfigError, match="went further than step 8"):
        resume.candidates(config(out, folder))


def test_another_step_of_the_same_number_is_not_the_named_one(tmp_path, named):
    other = checkpoint(tmp_path / "other", 8, run_id="s")
    checkpoint(tmp_path / "out", 10, **named[1])
    with pytest.raises(ConfigError, match="went further than step 8"):
        resume.candidates(config(tmp_path / "out", other))


def test_pruning_keeps_the_named_one_and_damaged_ones_until_all_are_newer(tmp_path):
    first = checkpoint(tmp_path, 2)
    for step in (4, 6, 8):
        checkpoint(tmp_path, step)
    for step in (4, 7):
        (tmp_path / "checkpoints" / f"step-{step:06d}.damaged").mkdir()
    prune(config(tmp_path, first))
    assert names(tmp_path) == ["000002", "000004.damaged", "000006", "000007.damaged", "000008"]
    prune(config(tmp_path))
    assert names(tmp_path) == ["000006", "000007.damaged", "000008"]
    checkpoint(tmp_path, 10)
    prune(config(tmp_path))
    assert names(tmp_path) == ["000008", "000010"]


def bad(number: int) -> SimpleNamespace:
    return SimpleNamespace(applied=False, micro_losses=[float("nan")])


def steps(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / bad_steps.FILE_NAME).read_text().splitlines()]


PLAN = SimpleNamespace(steps=range(100), rows=lambda step, rank: [["traces.jsonl row 1"]])


def test_bad_steps_that_are_done_again_stand_in_the_file_once_and_a_row_of_them_goes_on(tmp_path):
    watch = BadSteps(Alone(), PLAN, tmp_path, limit=4)
    for number in (1, 4, 5, 6):
        if number == 4:
            watch.watch(3, SimpleNamespace(applied=True))
        assert "was skipped" in watch.watch(number, bad(number))
    with (tmp_path / bad_steps.FILE_NAME).open("a") as file:
        file.write('{"step": 8, "micro')  # killed in the middle of it
    assert steps_but_the_last(tmp_path) == [2, 5, 6, 7]
    again = BadSteps(Alone(), PLAN, tmp_path, limit=4, done=6)
    assert steps(tmp_path) == [2, 5, 6]
    assert again.total == 3
    again.watch(6, bad(6))
    with pytest.raises(TooManyBadSteps, match="These were 4 in a row"):
        again.watch(7, bad(7))
    assert steps(tmp_path) == [2, 5, 6, 7, 8]
    good = BadSteps(Alone(), PLAN, tmp_path, limit=2, done=4)
    assert steps(tmp_path) == [2]
    assert "was skipped" in good.watch(4, bad(4)), "step 4 was good: this is the first of a row"


def steps_but_the_last(out: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (out / bad_steps.FILE_NAME).read_text().splitlines()[:-1]]
