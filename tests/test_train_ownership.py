"""One run at a time in an output_dir: who may take it, when, and what the one that lost it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mvtrain.train import alive
from mvtrain.train.ownership import FILE_NAME, InUse, Ownership, check_owned
from tests.alone import Alone


def owner_file(folder: Path, **changes) -> Path:
    """Of an owner on another machine, unless told otherwise."""
    facts = {"token": "t", "host": "node7", "pid": 1234, "started": "99", "place": "elsewhere", **changes}
    file = folder / FILE_NAME
    file.write_text(json.dumps(facts))
    return file


@pytest.fixture
def process():
    """A process of this machine."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield started
    started.kill()
    started.wait()


def take(folder: Path, notes: list[str] | None = None, **times) -> Ownership:
    return Ownership(folder, (notes if notes is not None else []).append, **times)


def test_it_is_taken_and_left(tmp_path):
    owned = take(tmp_path)
    facts = json.loads((tmp_path / FILE_NAME).read_text())
    assert (facts["pid"], facts["token"]) == (os.getpid(), owned.token)
    assert owned.lost() is None
    owned.release()
    assert list(tmp_path.iterdir()) == []


def test_a_live_process_of_this_machine_keeps_it_and_a_dead_one_loses_it_at_once(tmp_path, process):
    mine = {"host": "here", "pid": process.pid, "started": alive.started(process.pid), "place": alive.place()}
    old = owner_file(tmp_path, **mine)
    os.utime(old, (1, 1))  # its signs of life do not matter here
    with pytest.raises(InUse, match=f"{tmp_path} is in use by another run, process {process.pid} on here"):
        take(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    notes = []
    began = time.monotonic()
    owned = take(tmp_path, notes)  # nobody has asked for its status: it is a zombie
    assert time.monotonic() - began < 1
    assert notes == [f"{tmp_path}: process {process.pid} on here has not ended its run properly; taking over"]
    owned.release()


def test_another_process_with_the_number_of_a_dead_one_is_not_the_owner(tmp_path, process):
    owner_file(tmp_path, pid=process.pid, started="1", place=alive.place())
    take(tmp_path).release()


def test_a_silent_owner_elsewhere_is_waited_for_and_then_dead(tmp_path):
    owner_file(tmp_path)
    notes = []
    began = time.monotonic()
    owned = take(tmp_path, notes, silence=1.0)
    assert 0.9 < time.monotonic() - began < 3
    assert "process 1234 on node7 was at work here 0 s ago; waiting for a sign of life, at most 1 s" in notes[0]
    assert "taking over" in notes[1]
    owned.release()


def test_an_owner_elsewhere_that_was_silent_for_long_is_dead_at_once(tmp_path):
    file = owner_file(tmp_path)
    os.utime(file, (time.time() - 100,) * 2)
    notes = []
    began = time.monotonic()
    take(tmp_path, notes, silence=60.0).release()
    assert time.monotonic() - began < 1
    assert len(notes) == 1


def test_an_owner_elsewhere_that_shows_signs_of_life_keeps_it(tmp_path):
    file = owner_file(tmp_path)
    timer = threading.Timer(0.3, os.utime, [file])
    timer.start()
    with pytest.raises(InUse, match="process 1234 on node7"):
        take(tmp_path, silence=5.0)
    timer.join()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_one_that_leaves_while_it_is_waited_for_makes_room(tmp_path):
    file = owner_file(tmp_path)
    timer = threading.Timer(0.3, file.unlink)
    timer.start()
    began = time.monotonic()
    take(tmp_path, silence=10.0).release()
    assert time.monotonic() - began < 5


def test_who_lost_it_finds_out_and_leaves_the_other_alone(tmp_path):
    first = take(tmp_path, beat=0.05)
    alone = Alone()
    check_owned(first, alone)
    second = owner_file(tmp_path.joinpath("later").mkdir() or tmp_path / "later")
    os.replace(second, tmp_path / FILE_NAME)
    os.utime(tmp_path / FILE_NAME, (5, 5))
    time.sleep(0.3)
    assert (tmp_path / FILE_NAME).stat().st_mtime == 5, "its signs of life are not taken for the other's"
    with pytest.raises(InUse, match=r"process 1234 on node7 has taken .* over; this run writes nothing more there"):
        check_owned(first, alone)
    first.release()
    assert (tmp_path / FILE_NAME).exists()


def test_signs_of_life(tmp_path):
    owned = take(tmp_path, beat=0.05)
    os.utime(owned.file, (5, 5))
    time.sleep(0.3)
    assert owned.file.stat().st_mtime > time.time() - 5
    owned.release()


def test_a_removed_file_is_made_again(tmp_path):
    owned = take(tmp_path)
    owned.file.unlink()
    assert owned.lost() is None
    assert json.loads(owned.file.read_text())["token"] == owned.token
    owned.release()


def test_of_many_that_come_at_once_one_gets_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Ownership, "_is_near", lambda *_: False)  # threads: they would all be the same process
    won, lost, barrier = [], [], threading.Barrier(8)

    def come() -> None:
        barrier.wait()
        try:
            won.append(take(tmp_path, beat=0.05, silence=5.0))
        except InUse as error:
            lost.append(error)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    won[0].release()
