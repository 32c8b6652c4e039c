"""Steps whose loss or gradient was not finite: skipped, counted, and written down with their rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mvtrain.train.plan import Plan
from mvtrain.train.processes import Ranks
from mvtrain.train.step import Update

FILE_NAME = "bad_steps.jsonl"


class TooManyBadSteps(RuntimeError):
    """So many steps in a row were skipped that the run would only waste its time."""


class BadSteps:
    """Watches the steps of a run. On every rank."""

    def __init__(self, ranks: Ranks, plan: Plan, folder: Path, limit: int) -> None:
        self.ranks, self.plan, self.folder, self.limit = ranks, plan, folder, limit
        self.total = 0
        self._in_a_row = 0

    def watch(self, number: int, update: Update) -> str | None:
        """After every step, counted from 0. Returns a warning for a skipped one.

        Raises:
            TooManyBadSteps: `limit` of them followed each other.
        """
        if update.applied:
            self._in_a_row = 0
            return None
        self.total += 1
        self._in_a_row += 1
        where = self._write(number, update)
        text = f"step {number + 1} was skipped: its loss or gradient is not finite; its rows are in {where}"
        if self._in_a_row >= self.limit:
            raise TooManyBadSteps(
                f"{text}. These were {self._in_a_row} in a row (max_bad_steps); "
                "look at those rows, lower the learning rate, or go on from an earlier checkpoint"
            )
        return text

    def _write(self, number: int, update: Update) -> Path:
        """One line with each rank's micro-steps: their losses, and file and row of their examples."""
        losses = self.ranks.gather(update.micro_losses)
        step = self.plan.steps[number]
        file = self.folder / FILE_NAME
        if self.ranks.is_first:
            micro_steps = [
                {"rank": rank, "loss": loss if math.isfinite(loss) else str(loss), "rows": rows}
                for rank, of_rank in enumerate(losses)
                for loss, rows in zip(of_rank, self.plan.rows(step, rank), strict=True)
            ]
            with file.open("a") as stream:
                stream.write(json.dumps({"step": number + 1, "micro_steps": micro_steps}) + "\n")
        return file
