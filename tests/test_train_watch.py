"""The watch over ranks, and over the launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from mvtrain.train import launcher_gone, watch
from mvtrain.train.launcher_gone import launchers_above


class Pair:
    """Two ranks as threads. The second one lets `between` happen when it knows the first one's port."""

    world_size = 2

    def __init__(self, rank: int, shared: dict, barrier: threading.Barrier, between) -> None:
        self.rank = self.local_rank = rank
        self.is_first = rank == 0
        self.shared, self.barrier, self.between = shared, barrier, between

    def gather(self, value):
        self.shared[self.rank] = value
        self.barrier.wait()
        if not self.is_first:
            self.between(self.shared[0][1])
        return [self.shared[0], self.shared[1]]

    def wait(self) -> None:
        self.barrier.wait()


def watches(between) -> list[watch.Watch]:
    shared, barrier, made = {}, threading.Barrier(2, timeout=20), {}

    def make(rank: int) -> None:
        made[rank] = watch.Watch(Pair(rank, shared, barrier, between))

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [0, 1], "a rank could not connect"
    return [made[0], made[1]]


def test_strangers_that_come_first_are_sent_away(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(watch, "INTRODUCTION", 0.3)
    monkeypatch.setattr(watch.os, "_exit", print)  # a rank that failed would end this test's process
    strangers = []

    def come(port: int) -> None:
        for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 5000):
            stranger = socket.create_connection(("127.0.0.1", port))
            strangers.append(stranger)
            stranger.sendall(words)
        strangers[-1].close()

    first, second = watches(come)
    assert len(first._peers) == len(second._peers) == 1
    strangers[0].settimeout(5)
    assert strangers[0].recv(1) == b"", "the silent one was hung up on"
    for one in (first, second):
        one.close()
    for one in strangers:
        one.close()


COMMANDS = {
    "python3 /opt/venv/bin/deepspeed --num_accelerators 2 launch/sft.py r.yaml": True,
    "deepspeed launch/sft.py r.yaml": True,
    "/usr/bin/python -u -m deepspeed.launcher.launch --world_info=e30= --master_addr=x launch/sft.py": True,
    "python3 /opt/venv/bin/torchrun --nproc_per_node 2 launch/sft.py r.yaml": True,
    "python -m torch.distributed.run --nproc_per_node 2 launch/sft.py": True,
    "-bash": False,
    "bash run_deepspeed.sh": False,
    "bash -l": False,
    "slurmstepd: [12.0]": False,
    "python -m pytest tests/deepspeed": False,
    "sshd: user@pts/0": False,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_which_commands_are_launchers(command):
    assert launcher_gone._is_launcher(command.split(" ")) is COMMANDS[command]


def test_no_launcher_stands_above_this_test():
    assert launchers_above(os.getpid()) == {}


CHAIN = """
import subprocess, sys, time
from mvtrain.train.launcher_gone import stop_with_launcher
if len(sys.argv) > 1:
    program = [sys.executable, *sys.argv[1].split()] + ([sys.argv[2]] if len(sys.argv) > 2 else [])
    print(subprocess.Popen(program, env={"PYTHONPATH": ".", "PATH": ""}).pid, flush=True)
else:
    stop_with_launcher()
    print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("name", "ends"), [("deepspeed", True), ("shell", False)])
def test_a_process_ends_with_its_launcher_but_not_with_another_parent(tmp_path, name, ends):
    """One process starts another; then it is killed."""
    script = tmp_path / name
    script.write_text(CHAIN)
    (tmp_path / "train.py").write_text(CHAIN)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "train.py")],
        env={**os.environ, "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        text=True,
    )
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.05)
    assert _is_running(child) is not ends
    if not ends:
        os.kill(child, signal.SIGKILL)


def _is_running(pid: int) -> bool:
    from mvtrain.train import alive

    return alive.started(pid) is not None
