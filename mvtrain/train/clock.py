"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class StepClock:
    """Adds up seconds by name. On CUDA the device's own time between two points, which need no waiting."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: dict[str, list[tuple[float | torch.cuda.Event, float | torch.cuda.Event]]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans[name].append((begin, self._now()))

    def seconds(self) -> dict[str, float]:
        """Waits for the device."""
        if self._on_cuda:
            torch.cuda.synchronize()
        return {name: sum(self._between(*span) for span in spans) for name, spans in self._spans.items()}

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
        return begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin
