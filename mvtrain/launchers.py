"""What a launcher (deepspeed, torchrun, Slurm's srun) tells a process about itself and where the ranks meet."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What deepspeed and torchrun set for every process, and what torch reads."""

PORTS_OF_JOBS = range(20_000, 60_000)
"""Where the port of a Slurm job is taken from, by the job's number."""

HOW_TO_LAUNCH = (
    "start with `deepspeed launch/sft.py RECIPE`, `torchrun --nproc_per_node N launch/sft.py RECIPE` or, "
    "in a Slurm job, `srun python launch/sft.py RECIPE` (the same with launch/evaluate.py CHECKPOINT)"
)


class LaunchError(RuntimeError):
    """The ranks of a run cannot work together; the message says what to do.

    `on_all_ranks`: every rank raises it with the same message, so one of them may tell it for all.
    """

    def __init__(self, message: str, *, on_all_ranks: bool) -> None:
        super().__init__(message)
        self.on_all_ranks = on_all_ranks


@dataclass(frozen=True)
class Launch:
    """This process among those a launcher started, and the address at which the first one awaits the others."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    """Ranks on this host."""
    master_addr: str
    master_port: int
    by: str
    """`launcher` (deepspeed, torchrun and their like), `slurm`, or `nobody`."""

    def export(self, environ: MutableMapping[str, str]) -> None:
        """Tell torch and DeepSpeed, which read the environment."""
        environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK=str(self.local_rank),
            MASTER_ADDR=self.master_addr,
            MASTER_PORT=str(self.master_port),
        )
        environ.setdefault("LOCAL_SIZE", str(self.local_size))


def read_launch(environ: Mapping[str, str]) -> Launch:
    """Who we are: what a launcher says, else a Slurm step of several tasks, else one rank by itself.

    Raises:
        ValueError: the environment says that there are several ranks, but not all that this one has to know.
    """
    if "RANK" in environ or "LOCAL_RANK" in environ:
        return _of_launcher(environ)
    if is_slurm_step(environ):
        return _of_slurm(environ)
    if environ.get("WORLD_SIZE", "1") != "1":
        return _of_launcher(environ)
    return Launch(0, 1, 0, 1, "127.0.0.1", _free_port(), "nobody")


def is_first_rank(environ: Mapping[str, str]) -> bool:
    """Whether this process speaks for the run. Never fails, so that mistakes can be told before all is understood."""
    if "RANK" not in environ and is_slurm_step(environ):
        return environ.get("SLURM_PROCID", "0") == "0"
    return environ.get("RANK", "0") == "0"


def is_slurm_step(environ: Mapping[str, str]) -> bool:
    """Whether `srun` started this process as one of several.

    A batch script and a shell in an allocation have the job's variables too, but are no step of several tasks.
    """
    # In a shell in an allocation SLURM_NTASKS may be the allocation's; the step's own count is right everywhere.
    num_tasks = environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or "1"
    return "SLURM_STEP_ID" in environ and num_tasks.isdigit() and int(num_tasks) > 1


def first_host(nodelist: str) -> str:
    """The first name of Slurm's compressed list: `gpu[03-05,9],login` -> `gpu03`."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])+", nodelist)
    if first is None:
        raise ValueError(f"Slurm's list of nodes {nodelist!r} names no node")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def _of_launcher(environ: Mapping[str, str]) -> Launch:
    _require(environ, VARIABLES)
    rank, world_size, local_rank, port = (
        _number(environ, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    )
    local_size = int(environ.get("LOCAL_SIZE") or environ.get("LOCAL_WORLD_SIZE") or 1)
    return _checked(Launch(rank, world_size, local_rank, local_size, environ["MASTER_ADDR"], port, "launcher"))


def _of_slurm(environ: Mapping[str, str]) -> Launch:
    _require(environ, ("SLURM_PROCID", "SLURM_LOCALID"))
    if not environ.get("MASTER_PORT"):
        _require(environ, ("SLURM_JOB_ID",))
    host = environ.get("MASTER_ADDR")
    if not host:
        name = "SLURM_STEP_NODELIST" if environ.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
        _require(environ, (name,))
        host = first_host(environ[name])
    size = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    return _checked(
        Launch(
            rank=_number(environ, "SLURM_PROCID"),
            world_size=_number(environ, size),
            local_rank=_number(environ, "SLURM_LOCALID"),
            local_size=_tasks_of_node(environ),
            master_addr=host,
            master_port=_number(environ, "MASTER_PORT") if environ.get("MASTER_PORT") else _port_of_job(environ),
            by="slurm",
        )
    )


def _port_of_job(environ: Mapping[str, str]) -> int:
    """The same on all nodes without talking, and another one for the next job."""
    return PORTS_OF_JOBS[_number(environ, "SLURM_JOB_ID") % len(PORTS_OF_JOBS)]


def _tasks_of_node(environ: Mapping[str, str]) -> int:
    """`8(x2),3` is 8 tasks on each of two nodes, and 3 on the third."""
    counts: list[int] = []
    for part in (environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "1").split(","):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        counts += [int(found[1])] * int(found[2] or 1) if found else [1]
    node = int(environ.get("SLURM_NODEID") or 0)
    return counts[node] if node < len(counts) else 1


def _require(environ: Mapping[str, str], names: tuple[str, ...]) -> None:
    missing = [name for name in names if not environ.get(name)]
    if missing:
        given = [name for name in (*VARIABLES, "SLURM_STEP_ID") if environ.get(name)]
        raise ValueError(
            f"the environment has {', '.join(given)} but not {', '.join(missing)}, so this process does not know the "
            f"other ranks; {HOW_TO_LAUNCH}"
        )


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ[name]
    if not value.isdigit():
        raise ValueError(f"{name} should be a number, not {value!r}; {HOW_TO_LAUNCH}")
    return int(value)


def _checked(launch: Launch) -> Launch:
    if launch.rank >= launch.world_size:
        raise ValueError(
            f"rank {launch.rank} does not exist among {launch.world_size} ranks, which count from 0; {HOW_TO_LAUNCH}"
        )
    if not 0 < launch.master_port < 65_536:
        raise ValueError(f"MASTER_PORT should be a port between 1 and 65535, not {launch.master_port}")
    return launch


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
