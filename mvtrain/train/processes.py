"""The ranks of a run: who we are, on which device, and how sums are taken over all."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from mvtrain.launchers import Launch, LaunchError, read_launch
from mvtrain.train.batching import Batching
from mvtrain.train.meeting import PATIENCE, met


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run. `device` is where its share of the work happens."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher or Slurm says; one rank where nothing started several. Starts nothing.

        Raises:
            ValueError: the environment is incomplete, or there is no GPU for this rank.
        """
        launch = read_launch(os.environ)
        if torch.cuda.is_available():
            launch = replace(launch, local_rank=_gpu_of(launch, torch.cuda.device_count()))
        launch.export(os.environ)
        device = torch.device("cuda", launch.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        return cls(launch.rank, launch.world_size, launch.local_rank, device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def connect(self, patience: float = PATIENCE) -> None:
        """Start the process group (gloo on the CPU, nccl on CUDA), when all ranks have come.

        Raises:
            LaunchError: the port is in use, the first rank cannot be reached, or ranks did not come within `patience`
                seconds.
        """
        deepspeed = import_deepspeed()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            _share_cores()
            # DeepSpeed would compile a shared-memory all-reduce first, for half a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed still calls collectives by names that torch is about to rename.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        with met(read_launch(os.environ), patience):
            try:
                deepspeed.init_distributed(dist_backend=backend, verbose=False)
            except RuntimeError as error:
                raise LaunchError(
                    f"rank {self.rank} on {socket.gethostname()} met the others, but {backend} could not connect to "
                    f"them; set {backend.upper()}_SOCKET_IFNAME on every host to the network that joins them "
                    f"(`ip -brief address` lists them). {error}",
                    on_all_ranks=False,
                ) from None

    def sum(self, *values: float) -> list[float]:
        """Each value summed over all ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank. For small values: they are pickled."""
        values = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def sequence_group(self, batching: Batching) -> Any:
        """The process group of the ranks that share this rank's packs; None where every rank has its own."""
        size = batching.sequence_parallel_size
        if size == 1:
            return None
        groups = [torch.distributed.new_group(range(i, i + size)) for i in range(0, self.world_size, size)]
        return groups[batching.group_of(self.rank)]

    def wait(self) -> None:
        """Return when all ranks have come here."""
        torch.distributed.barrier()


def import_deepspeed() -> Any:
    """deepspeed, or ImportError that names the extra."""
    # Its accelerator detection would otherwise choose CUDA wherever a CUDA build of torch is installed.
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    try:
        import deepspeed
    except ImportError as error:
        raise ImportError("training needs deepspeed; install it with `pip install 'mvtrain[train]'`") from error
    return deepspeed


def end_process(status: int = 0) -> NoReturn:
    """Leave: exit functions run and output is flushed, but the interpreter is not torn down.

    DeepSpeed's hooks keep its process groups alive beyond `destroy_process_group`. A gloo thread that lets go of its
    last tensor while the interpreter is torn down aborts the process, and a finished run would look like a failed one.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody may listen any more
            stream.flush()
    os._exit(status)


def _gpu_of(launch: Launch, num_gpus: int) -> int:
    if launch.by == "slurm" and num_gpus == 1:
        return 0  # with --gpus-per-task=1 each task sees its own GPU only, and it is number 0 to every one
    if launch.local_rank >= num_gpus:
        raise ValueError(
            f"rank {launch.rank} is number {launch.local_rank} on {socket.gethostname()}, counting from 0, but sees "
            f"{num_gpus} GPUs; start as many ranks on a host as it has GPUs"
        )
    return launch.local_rank


def _share_cores() -> None:
    """Divide the machine's cores among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
