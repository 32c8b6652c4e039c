"""One line that says how far training is: rewritten in place on a terminal, otherwise a line every few steps."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import suppress
from typing import Any, TextIO

from mvtrain.provenance import without_secrets

WINDOW = 20
"""Steps over which the speed for the ETA is averaged."""


class Progress:
    """Prints on the first rank only; the others have `stream=None`."""

    def __init__(self, num_steps: int, every: int, stream: TextIO | None = sys.stdout) -> None:
        self.num_steps = num_steps
        self.every = every
        self.stream = stream
        self.in_place = stream is not None and stream.isatty()
        self.seconds: deque[float] = deque(maxlen=WINDOW)

    def show(self, record: dict[str, Any]) -> None:
        """`record` is a line of log.jsonl."""
        self.seconds.append(record["seconds"])
        step = record["step"]
        if self.stream is None or not (self.in_place or step % self.every == 0 or step == self.num_steps):
            return
        eta = (self.num_steps - step) * sum(self.seconds) / len(self.seconds)
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
        line = (
            f"step {step}/{self.num_steps}  {record['phase']}  loss {loss}  "
            f"{record['tokens_per_s']:,.0f} tokens/s  fill {record['fill']:.0%}  ETA {duration(eta)}"
        )
        end = "\n" if not self.in_place or step == self.num_steps else ""
        self._write(line + end)

    def note(self, text: str) -> None:
        """A line of its own, without secrets."""
        if self.stream is not None:
            self._write(without_secrets(text) + "\n")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # who read this, the launcher or a terminal, may be gone; the run shall still be saved
            self.stream.write(("\r\x1b[2K" if self.in_place else "") + text)
            self.stream.flush()


def duration(seconds: float) -> str:
    """12 -> 12s, 135 -> 2m15s, 7,500 -> 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
