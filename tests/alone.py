"""A rank that is alone: collectives without a process group."""

from __future__ import annotations

from typing import Any


class Alone:
    """In place of `Ranks`."""

    rank, world_size, local_rank, is_first = 0, 1, 0, True

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def wait(self) -> None:
        pass
