"""The ranks of a run: who we are, on which device, and how sums are taken over all."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import warnings
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from mvtrain.train.batching import Batching


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of the run. `device` is where its share of the work happens."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher says; one rank where no launcher started this process. Starts nothing."""
        _be_alone_without_launcher()
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
        return cls(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local_rank, device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def connect(self) -> None:
        """Start the process group (gloo on the CPU, nccl on CUDA)."""
        deepspeed = import_deepspeed()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        else:
            _share_cores()
            # DeepSpeed would compile a shared-memory all-reduce first, for half a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed still calls collectives by names that torch is about to rename.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        deepspeed.init_distributed(dist_backend="nccl" if self.device.type == "cuda" else "gloo", verbose=False)

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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _be_alone_without_launcher() -> None:
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def _share_cores() -> None:
    """Divide the machine's cores among its ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
