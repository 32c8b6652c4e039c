"""Who a process is, from the environments that launchers and Slurm leave it in."""

from __future__ import annotations

import pytest
import torch

from mvtrain.launchers import first_host, is_first_rank, read_launch
from mvtrain.train.meeting import show_ranks
from mvtrain.train.processes import Ranks

DEEPSPEED = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "8",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}
JOB = {"SLURM_JOB_ID": "81234", "SLURM_JOB_NODELIST": "gpu[03-05,9]", "SLURM_NTASKS": "16", "SLURM_NNODES": "2"}
STEP = {
    **JOB,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[04-05]",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


def test_a_launcher_says_who_we_are():
    launch = read_launch(DEEPSPEED)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.local_size) == (9, 16, 1, 8)
    assert (launch.master_addr, launch.master_port, launch.by) == ("10.0.0.1", 29500, "launcher")
    torchrun = {**without(DEEPSPEED, "LOCAL_SIZE"), "LOCAL_WORLD_SIZE": "4"}
    assert read_launch(torchrun).local_size == 4


def test_a_launcher_within_a_slurm_step_comes_first():
    launch = read_launch({**STEP, **DEEPSPEED, "RANK": "3"})
    assert (launch.rank, launch.master_addr, launch.by) == (3, "10.0.0.1", "launcher")


def test_a_slurm_step_says_who_we_are():
    launch = read_launch(STEP)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.local_size) == (9, 16, 1, 8)
    assert (launch.master_addr, launch.master_port, launch.by) == ("gpu04", 20_000 + 81_234 % 40_000, "slurm")


def test_what_slurm_leaves_out_is_taken_from_the_job():
    launch = read_launch(without(STEP, "SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"))
    assert (launch.master_addr, launch.world_size, launch.local_size) == ("gpu03", 16, 1)


def test_address_and_port_of_a_slurm_step_can_be_chosen():
    """Scripts often export WORLD_SIZE as well, without a rank."""
    launch = read_launch({**STEP, "MASTER_ADDR": "gpu04-ib", "MASTER_PORT": "12345", "WORLD_SIZE": "16"})
    assert (launch.master_addr, launch.master_port, launch.rank) == ("gpu04-ib", 12345, 9)


@pytest.mark.parametrize("job", ["1", "39999", "40000", "4294967295"])
def test_ports_of_jobs_are_in_their_range(job):
    assert 20_000 <= read_launch({**STEP, "SLURM_JOB_ID": job}).master_port < 60_000


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"},
        {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        without({**STEP, "SLURM_NTASKS": "1"}, "SLURM_STEP_NUM_TASKS"),
    ],
    ids=["nothing", "one", "address only", "batch script", "shell in an allocation of 16 tasks", "srun -n 1"],
)
def test_otherwise_a_process_is_alone(environ):
    launch = read_launch(environ)
    assert (launch.rank, launch.world_size, launch.local_rank, launch.by) == (0, 1, 0, "nobody")
    assert launch.master_addr == "127.0.0.1"
    assert is_first_rank(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (without(DEEPSPEED, "MASTER_ADDR", "MASTER_PORT"), "not MASTER_ADDR, MASTER_PORT, so"),
        (without(DEEPSPEED, "LOCAL_RANK"), "has RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT but not LOCAL_RANK"),
        ({"WORLD_SIZE": "4"}, "has WORLD_SIZE but not RANK, LOCAL_RANK"),
        ({"LOCAL_RANK": "0"}, "not RANK, WORLD_SIZE"),
        ({**DEEPSPEED, "RANK": "first"}, "RANK should be a number, not 'first'"),
        ({**DEEPSPEED, "RANK": "16"}, "rank 16 does not exist among 16 ranks"),
        (without(STEP, "SLURM_PROCID"), "has SLURM_STEP_ID but not SLURM_PROCID"),
        (without(STEP, "SLURM_JOB_ID"), "not SLURM_JOB_ID"),
        (without(STEP, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"), "not SLURM_JOB_NODELIST"),
    ],
)
def test_an_incomplete_environment_says_what_is_missing_and_how_to_launch(environ, message):
    with pytest.raises(ValueError) as caught:
        read_launch(environ)
    assert message in str(caught.value)
    assert "srun python launch/sft.py RECIPE" in str(caught.value)


def test_a_port_that_is_none():
    with pytest.raises(ValueError, match="MASTER_PORT should be a port between 1 and 65535, not 70000"):
        read_launch({**DEEPSPEED, "MASTER_PORT": "70000"})


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[03-05,9],login", "gpu03"),
        ("gpu[7,9-11]", "gpu7"),
        ("rack[1-2]node[003-010]-ib,other[1-2]", "rack1node003-ib"),
        ("a-b-c[12]", "a-b-c12"),
    ],
)
def test_the_first_host_of_a_compressed_list(nodelist, first):
    assert first_host(nodelist) == first


def test_an_uneven_step_knows_its_own_node():
    sizes = [
        read_launch({**STEP, "SLURM_STEP_TASKS_PER_NODE": "6(x2),4", "SLURM_NODEID": node}).local_size for node in "012"
    ]
    assert sizes == [6, 6, 4]


def test_one_rank_tells_mistakes_also_under_slurm():
    assert not is_first_rank(STEP)
    assert is_first_rank({**STEP, "SLURM_PROCID": "0"})
    assert not is_first_rank(DEEPSPEED)
    assert is_first_rank({**STEP, "SLURM_PROCID": "3", "RANK": "0"}), "the launcher within the step"


def test_ranks_tell_torch_and_deepspeed(monkeypatch):
    environ = dict(STEP)
    monkeypatch.setattr("mvtrain.train.processes.os.environ", environ)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ranks = Ranks.from_environment()
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.device.type) == (9, 16, 1, "cpu")
    told = {name: value for name, value in environ.items() if name not in STEP}
    assert told == {**DEEPSPEED, "MASTER_ADDR": "gpu04", "MASTER_PORT": str(20_000 + 81_234 % 40_000)}
    assert Ranks.from_environment() == ranks, "read again, it is the same"


@pytest.mark.parametrize(
    ("environ", "num_gpus", "device"),
    [(STEP, 8, 1), (STEP, 1, 0), (DEEPSPEED, 8, 1), (DEEPSPEED, 1, None), ({**STEP, "SLURM_LOCALID": "5"}, 4, None)],
    ids=["step", "step with a GPU per task", "launcher", "launcher without enough", "step without enough"],
)
def test_the_gpu_of_a_rank(monkeypatch, environ, num_gpus, device):
    monkeypatch.setattr("mvtrain.train.processes.os.environ", dict(environ))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    if device is None:
        with pytest.raises(ValueError, match="start as many ranks on a host as it has GPUs"):
            Ranks.from_environment()
    else:
        assert Ranks.from_environment().device == torch.device("cuda", device)


def test_ranks_are_shown_in_spans():
    assert show_ranks([3]) == "rank 3"
    assert show_ranks([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
