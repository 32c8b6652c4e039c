"""Ranks that cannot meet, or see different files, say so in seconds; each rank is a process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from tests.distributed.check_files import LAG
from tests.distributed.runs import ROOT, free_port, launch_sft, run_pair, write_recipe

HERE = socket.gethostname()


def meet(*ranks: int, world_size: int, port: int, patience: float = 30, address: str = "127.0.0.1"):
    """(exit status, output) of each of these ranks, and the seconds it took."""
    began = time.monotonic()
    words = [str(world_size), address, str(port), str(patience)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.meet_once", str(rank), *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    try:
        outputs = [process.communicate(timeout=100) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any("Traceback" in error for _, error in outputs), outputs
    return [(p.returncode, out.strip()) for p, (out, _) in zip(processes, outputs, strict=True)], (
        time.monotonic() - began
    )


@pytest.fixture
def occupied():
    """A port at which another program listens, and says nothing."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


def test_ranks_meet():
    results, _ = meet(0, 1, 2, world_size=3, port=free_port())
    assert results == [(0, "met")] * 3


def test_a_port_in_use(occupied):
    ((first, said), (second, heard)), seconds = meet(0, 1, world_size=2, port=occupied, patience=5)
    assert (first, second) == (2, 2)
    assert said.startswith(f"port {occupied} of {HERE}, where the ranks were to meet (127.0.0.1:{occupied}), is in use")
    assert "`--master_port N`" in said
    assert heard.startswith(f"rank 1 on {HERE} reached 127.0.0.1:{occupied}, but no first rank of a run answers there")
    assert seconds < 30


@pytest.mark.parametrize(
    ("address", "reason"),
    [("127.0.0.1", "Connection refused"), ("no-such-host.invalid", "Name or service not known|name resolution")],
)
def test_a_first_rank_that_cannot_be_reached(address, reason):
    port = free_port()
    (((status, said),), seconds) = meet(1, world_size=2, port=port, patience=3, address=address)
    assert status == 2
    assert f"rank 1 on {HERE} could not reach the first rank at {address}:{port} within" in said
    assert any(part in said for part in reason.split("|"))
    assert "--master_addr" in said
    assert 3 <= seconds < 40


def test_a_rank_that_does_not_come_is_named_by_all_that_did():
    port = free_port()
    results, _ = meet(0, 2, world_size=4, port=port, patience=6)
    assert [status for status, _ in results] == [2, 2]
    assert results[0][1] == results[1][1], "one of them may tell it for all"
    assert results[0][1].startswith(f"ranks 1, 3 of 4 did not come to 127.0.0.1:{port} within 6 s")
    assert f"from {HERE}" in results[0][1]


def test_two_hosts_with_the_same_number():
    results, _ = meet(0, 1, 1, world_size=3, port=free_port(), patience=8)
    assert {status for status, _ in results} == {2}
    assert sum("a rank 1 is there already" in said for _, said in results) == 1
    assert sum("rank 2 of 3 did not come" in said for _, said in results) == 2


def test_training_on_a_port_in_use_ends_with_one_message(occupied, tmp_path):
    pytest.importorskip("deepspeed")
    began = time.monotonic()
    run = launch_sft(write_recipe(tmp_path, tied=True), port=occupied)
    assert run.returncode == 2
    assert time.monotonic() - began < 60
    assert "Traceback" not in run.stdout + run.stderr
    told = [line for line in run.stderr.splitlines() if line.startswith("sft: error: ")]
    assert len(told) == 1
    assert f"port {occupied} of {HERE}" in told[0]


def check_files(case: str, folder) -> list[dict]:
    pytest.importorskip("deepspeed")
    run_pair("tests.distributed.check_files", case, str(folder))
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_a_shared_folder(tmp_path):
    results = check_files("shared", tmp_path)
    assert results[0] == results[1]
    assert 0 <= results[0]["returned"] < LAG
    assert not list((tmp_path / "out").iterdir()), "nothing is left in it"


def test_a_folder_that_lags_is_waited_for(tmp_path):
    results = check_files("lagging", tmp_path)
    assert results[0] == results[1]
    assert LAG / 2 < results[0]["returned"] < 20


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("not_shared", "out-{rank} is not shared: a file that rank 0 wrote there did not show up on other hosts"),
        ("not_writable", "cannot write to output_dir"),
    ],
)
def test_a_folder_that_is_not_one(tmp_path, case, message):
    for rank, result in enumerate(check_files(case, tmp_path)):
        assert message.format(rank=rank) in result["error"]
        assert f"rank 1 on {HERE}: " in result["error"], "rank 0 is not among them"
        assert result["on_all_ranks"]


def test_ranks_that_read_different_data(tmp_path):
    assert check_files("same", tmp_path) == [{"returned": None}] * 2
    results = check_files("other", tmp_path)
    assert results[0] == results[1]
    assert results[0]["error"].startswith(
        f"the data on rank 1 ({HERE}) differs from that on rank 0 ({HERE}): bbbbbbbbbbbb there, aaaaaaaaaaaa here"
    )
