"""How far an evaluation is: a bar where people look, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from mvtrain.evaluate.records import Sample

EVERY_SECONDS = 30.0


class Progress:
    """Of one batched run. `stream` is None on ranks that say nothing.

    Args:
        name: what is running, such as `math500, parallel`.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self.name = name
        self.stream = stream
        self.num_graded = self.num_correct = 0
        self.start = self.told = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.stream is not None and self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
            self._bar = Bar(*columns, TextColumn("{task.fields[figures]}"), console=Console(file=self.stream))
            self._bar.start()
            self._task = self._bar.add_task(self.name, total=None, figures="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def graded(self, sample: Sample) -> None:
        self.num_graded += 1
        self.num_correct += sample.correct is True

    def step(self, done: int, total: int, num_tokens: int) -> None:
        """After every step of the engine."""
        if self.stream is None:
            return
        now = time.monotonic()
        speed = num_tokens / max(now - self.start, 1e-9)
        right = f", {self.num_correct / self.num_graded:.0%} right" if self.num_graded else ""
        figures = f"{speed:,.0f} tokens/s{right}"
        if self._bar is not None:
            self._bar.update(self._task, total=total, completed=done, figures=figures)
        elif done == total or now - self.told > EVERY_SECONDS:
            self.told = now
            print(f"{self.name}: {done}/{total} answers, {figures}", file=self.stream, flush=True)


def progress_of(name: str, shown: bool) -> Progress:
    """On standard error, where it is to be shown."""
    return Progress(name, sys.stderr if shown else None)
