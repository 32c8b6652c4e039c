"""Being asked to stop: by a scheduler that wants the machine back (SIGTERM, SIGUSR1), or by Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

STOPPED = 75
"""Exit status of a run that saved and can go on (EX_TEMPFAIL of sysexits.h): start it again."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(Exception):
    """The run was asked to stop, finished its step and saved."""


class StopSignals:
    """Remembers that a signal came, for the end of the step; where no step is running, ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._training = False

    def install(self) -> None:
        """From now on this process's signals come here."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def finish_steps(self, training: bool) -> None:
        """From now on a signal waits for the end of a step, or not."""
        self._training = training
        if not training and self.received:
            self._leave(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if not self._training or (number == signal.SIGINT and self.received == name):
            self._leave(name)
        self.received = self.received or name

    def _leave(self, name: str) -> None:
        print(f"sft: {name}: stopped; the newest checkpoint is whole", file=sys.stderr, flush=True)
        os._exit(STOPPED)
