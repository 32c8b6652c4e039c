"""Steps whose loss or gradient was not finite: skipped, counted, and written down with their rows."""

from __future__ import annotations

import json
import math
from pathlib import Path

from mvtrain.train.checkpoint_files import write_durably
from mvtrain.train.plan import Plan
from mvtrain.train.processes import Ranks
from mvtrain.train.step import Update
from mvtrain.train.tracking import step_of_line

FILE_NAME = "bad_steps.jsonl"


class TooManyBadSteps(RuntimeError):
    """So many steps in a row were skipped that the run would only waste its time."""


class BadSteps:
    """Watches the steps of a run, `done` of which lie behind it. Made by every rank at once.

    What the file says of steps that are done again is dropped; a row of bad steps goes on where the run does.
    """

    def __init__(self, ranks: Ranks, plan: Plan, folder: Path, limit: int, done: int = 0) -> None:
        self.ranks, self.plan, self.folder, self.limit = ranks, plan, folder, limit
        bad = ranks.gather(_keep(folder / FILE_NAME, done) if ranks.is_first else None)[0]
        self.total = len(bad)
        self._in_a_row = next(n for n in range(done + 1) if done - n not in bad)

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
        file = self.folder / FILE_NAME
        where = f"its rows are in {file}"
        try:
            self._write(file, number, update)
        except OSError as error:
            where = f"its rows could not be written into {file} ({error.strerror})"
        text = f"step {number + 1} was skipped: its loss or gradient is not finite; {where}"
        if self._in_a_row >= self.limit:
            raise TooManyBadSteps(
                f"{text}. These were {self._in_a_row} in a row (max_bad_steps); "
                "look at those rows, lower the learning rate, or go on from an earlier checkpoint"
            )
        return text

    def _write(self, file: Path, number: int, update: Update) -> None:
        """One line with each rank's micro-steps: their losses, and file and row of their examples."""
        losses = self.ranks.gather(update.micro_losses)
        step = self.plan.steps[number]
        if self.ranks.is_first:
            micro_steps = [
                {"rank": rank, "loss": loss if math.isfinite(loss) else str(loss), "rows": rows}
                for rank, of_rank in enumerate(losses)
                for loss, rows in zip(of_rank, self.plan.rows(step, rank), strict=True)
            ]
            with file.open("a") as stream:
                stream.write(json.dumps({"step": number + 1, "micro_steps": micro_steps}) + "\n")


def _keep(file: Path, done: int) -> set[int]:
    """Drop the lines of later steps, left by a run that went further. Returns the steps of those that stay."""
    if not file.is_file():
        return set()
    lines = {line: step_of_line(line) for line in file.read_text().splitlines(keepends=True)}
    kept = [line for line, step in lines.items() if step <= done]
    if len(kept) < len(lines):
        write_durably(file, "".join(kept))
    return {int(lines[line]) for line in kept}
