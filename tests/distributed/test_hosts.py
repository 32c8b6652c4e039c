"""launch/sft.py on two hosts, as clusters launch it: the numbers are those of two ranks on one host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.hosts import DEVICE, SSH_PORT, environment, records, two_hosts, why_no_hosts
from tests.distributed.runs import ROOT, free_port, launch_sft, parse, write_recipe

pytest.importorskip("deepspeed")

NUM_STEPS = 3
COMPUTED = ("step", "phase", "loss", "lr", "grad_norm", "tokens", "targets")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tied=True, max_steps=NUM_STEPS)


@pytest.fixture(scope="module")
def expected(recipe) -> list[dict]:
    """What `deepspeed --num_accelerators 2` on this machine logs."""
    run = launch_sft(recipe)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    records = computed(Path(parse(recipe).output_dir))
    assert len(records) == NUM_STEPS
    assert len({record["loss"] for record in records}) == NUM_STEPS
    return records


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(folder, its two hosts)"""
    reason = why_no_hosts()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with two_hosts(folder) as hosts:
        networks = {os.readlink(f"/proc/{host.pid}/ns/net") for host in hosts}
        assert len(networks) == 2
        assert networks <= networks_in_use()
        yield folder, hosts
    assert not networks & networks_in_use(), "no process is left of the hosts"


def networks_in_use() -> set[str]:
    """Network namespaces in which a process runs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found.add(os.readlink(process / "ns" / "net"))
        except OSError:
            continue
    return found


def computed(out: Path) -> list[dict]:
    """The lines of log.jsonl without what time and memory say."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in COMPUTED} for line in lines]


def sft(recipe: Path, out: Path) -> list[str]:
    return [str(ROOT / "launch" / "sft.py"), str(recipe), "--output_dir", str(out)]


def assert_one_rank_on_each_host(folder: Path, from_env_file: str) -> None:
    ranks = records(folder)
    assert [(host, value) for host, _, value in ranks] == [("node1", from_env_file), ("node2", from_env_file)]
    networks = {network for _, network, _ in ranks}
    assert len(networks) == 2
    assert os.readlink("/proc/self/ns/net") not in networks


def deepspeed(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("deepspeed")), *words]


def test_pdsh_starts_a_rank_on_each_host_of_the_hostfile(cluster, recipe, expected, tmp_path):
    folder, hosts = cluster
    launcher = ["--hostfile", str(folder / "hostfile"), "--ssh_port", str(SSH_PORT)]
    run = hosts[0].run(*deepspeed(*launcher), *sft(recipe, tmp_path / "out"), cwd=ROOT, env=environment(folder))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "cmd = pdsh" in run.stdout + run.stderr
    assert_one_rank_on_each_host(folder, from_env_file="yes")
    assert computed(tmp_path / "out") == expected


def test_without_ssh_one_command_runs_on_each_host(cluster, recipe, expected, tmp_path):
    folder, hosts = cluster
    launcher = ["--hostfile", str(folder / "hostfile"), "--no_ssh", "--master_addr", hosts[0].address]
    processes = [
        subprocess.Popen(
            host.command(*deepspeed(*launcher, "--node_rank", str(number)), *sft(recipe, tmp_path / "out")),
            cwd=ROOT,
            env={**environment(folder), "GLOO_SOCKET_IFNAME": DEVICE},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, host in enumerate(hosts)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "step 3/3" in outputs[0]
    assert "step 3/3" not in outputs[1], "one rank speaks"
    assert_one_rank_on_each_host(folder, from_env_file="-")
    assert computed(tmp_path / "out") == expected


@pytest.mark.parametrize("private", [False, True], ids=["shared", "a disk of its own"])
def test_an_output_dir_that_one_host_has_for_itself_is_refused(cluster, tmp_path, private):
    folder, hosts = cluster
    (tmp_path / "out").mkdir()
    if private:
        mounted = hosts[1].run("mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "out"))
        assert mounted.returncode == 0, mounted.stderr
    launcher = ["--hostfile", str(folder / "hostfile"), "--ssh_port", str(SSH_PORT), "--no_local_rank", "--module"]
    words = ["tests.distributed.check_files", "shared", str(tmp_path)]
    run = hosts[0].run(*deepspeed(*launcher, *words), cwd=ROOT, env=environment(folder))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert_one_rank_on_each_host(folder, from_env_file="yes")
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert ("returned" in first) is not private
    if private:
        assert first["error"].startswith(f"{tmp_path / 'out'} is not shared: ")
        assert first["error"].endswith("rank 1 on node2: not seen within 5 s")


def test_a_host_that_knows_its_name_as_loopback_is_told_which_variable_to_set(cluster, recipe, tmp_path):
    folder, hosts = cluster
    (folder / "no_interface").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    launcher = ["--hostfile", str(folder / "hostfile"), "--ssh_port", str(SSH_PORT)]
    environ = {**environment(folder), "DS_ENV_FILE": str(folder / "no_interface")}
    run = hosts[0].run(*deepspeed(*launcher), *sft(recipe, tmp_path / "out"), cwd=ROOT, env=environ)
    assert run.returncode != 0
    assert_one_rank_on_each_host(folder, from_env_file="-")
    told = [line for line in (run.stdout + run.stderr).splitlines() if "sft: error: " in line]
    assert len(told) == 1
    assert "the own name of node1 (127.0.1.1), node2 (127.0.1.1) is an address that no other host can reach" in told[0]
    assert "GLOO_SOCKET_IFNAME" in told[0]
    assert "Traceback" not in run.stdout + run.stderr


def test_hosts_that_cannot_reach_each_other_say_so(cluster, tmp_path):
    folder, hosts = cluster
    words = ["2", hosts[0].address, "29511", "4"]
    wall = ("route", "add", "blackhole", hosts[0].address)
    assert hosts[1].run("ip", *wall).returncode == 0
    processes = [
        subprocess.Popen(
            host.command(sys.executable, "-m", "tests.distributed.meet_once", str(rank), *words),
            cwd=ROOT,
            env=environment(folder),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert hosts[1].run("ip", "route", "del", *wall[2:]).returncode == 0
    assert [process.returncode for process in processes] == [2, 2]
    assert "rank 1 of 2 did not come to 10.213.7.1:29511 within 4 s (others did, from node1)" in outputs[0]
    assert "rank 1 on node2 could not reach the first rank at 10.213.7.1:29511 within" in outputs[1]


def test_torchrun_on_one_host(recipe, expected, tmp_path):
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc_per_node", "2"]
    run = subprocess.run(
        [*torchrun, "--master_port", str(free_port()), *sft(recipe, tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert computed(tmp_path / "out") == expected
