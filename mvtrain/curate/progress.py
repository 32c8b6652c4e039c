"""How far a curation is, stage by stage: a table where people look, a line now and then in a log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

from mvtrain.curate.curator import STAGES
from mvtrain.curate.records import Done
from mvtrain.curate.spending import SpendingSnapshot

EVERY_SECONDS = 30.0


class CurationProgress:
    """Of one run.

    Args:
        total: records in the input, or None where nobody has counted them.
        snapshot: what has been spent.
        stream: None says nothing.
    """

    def __init__(self, total: int | None, snapshot: Callable[[], SpendingSnapshot], stream: TextIO | None) -> None:
        self.total, self.snapshot, self.stream = total, snapshot, stream
        self.done: Counter[str] = Counter()
        self.stages: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
        self.start = self.told = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> CurationProgress:
        if self.stream is not None and self.stream.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(file=self.stream), get_renderable=self.table, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
        elif self.stream is not None and sum(self.done.values()):
            print(self.line(), file=self.stream, flush=True)

    def stage(self, stage: str, what: str) -> None:
        """A record begins or ends a stage, or a question of it is asked again."""
        self.stages[stage][what] += 1

    def finished(self, done: Done) -> None:
        self.done[done.status] += 1
        if self._live is None and self.stream is not None and time.monotonic() - self.told > EVERY_SECONDS:
            self.told = time.monotonic()
            print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        num, snapshot = sum(self.done.values()), self.snapshot()
        of = f" of {self.total}" if self.total is not None else ""
        failures = sum(stage.retries for stage in snapshot.stages.values())
        return (
            f"curate: {num}{of} records, {self.done['accepted']} accepted, {self.done['rejected']} rejected, "
            f"{snapshot.total.requests} requests, {snapshot.total.cached} cached, {failures} repeated, "
            f"${snapshot.spent:.2f}{self._left(num)}"
        )

    def _left(self, num: int) -> str:
        if self.total is None or not num or num >= self.total:
            return ""
        seconds = (time.monotonic() - self.start) / num * (self.total - num)
        return f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"

    def table(self) -> Any:
        """A row per stage: records that are in it, answers, and what went wrong."""
        from rich.table import Table

        snapshot = self.snapshot()
        table = Table(title=self.line(), title_justify="left", title_style="", box=None, pad_edge=False)
        for column in ("stage", "in it", "through", "asked again", "answers", "cached", "failed", "tokens", "$"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for stage in STAGES:
            counts, spent = self.stages[stage], snapshot.stages.get(stage)
            through, asked = counts["end"], counts["retry"]
            cells: list[Any] = [counts["begin"] - through, through, asked]
            if spent is not None:
                tokens = spent.prompt_tokens + spent.completion_tokens
                cells += [spent.answers, spent.cached, sum(spent.failures.values()), tokens, f"{spent.cost:.4f}"]
            table.add_row(stage, *(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells))
        return table
