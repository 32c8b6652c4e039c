"""The ranks of an evaluation: each has an engine of its own and answers its share of the problems."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mvtrain.launchers import read_launch

Item = TypeVar("Item")

PATIENCE = timedelta(days=7)
"""How long a rank that is through waits for the others: as long as an evaluation may take."""


@dataclass(frozen=True)
class EvaluationRanks:
    """This process among those that a launcher (deepspeed, torchrun, srun) started; alone where none did."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> EvaluationRanks:
        """Connect to the others through gloo, if a launcher or Slurm says that there are any.

        Raises ValueError where the environment does not say how to find them.
        """
        launch = read_launch(os.environ)
        if launch.world_size > 1:
            if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_size))
            launch.export(os.environ)
            dist.init_process_group("gloo", timeout=PATIENCE)
        return cls(launch.rank, launch.world_size, launch.local_rank)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> str:
        """A GPU for each rank of a machine, where there are any."""
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def share(self, items: Sequence[Item]) -> list[Item]:
        """What this rank works on: every n-th, so that hard problems that stand beside each other are spread."""
        return list(items[self.rank :: self.world_size])

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all ranks, by rank; None but on the first."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size if self.is_first else None
        dist.gather_object(value, values)
        return values

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.world_size > 1:
            dist.barrier()

    def first_does(self, action: Callable[[], Any]) -> None:
        """Let the first rank do something while the others wait. Where it raises ValueError or OSError, all do."""
        error: Exception | None = None
        if self.is_first:
            try:
                action()
            except (ValueError, OSError) as caught:
                error = caught
        if self.world_size > 1:
            told = [error and f"{error}"]
            dist.broadcast_object_list(told)
            error = error or (ValueError(told[0]) if told[0] is not None else None)
        if error is not None:
            raise error

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()
