"""Being asked to stop: by a scheduler that wants the machine back (SIGTERM, SIGUSR1), or by Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

STOPPED = 75
"""Exit status of a run that saved and can go on (EX_TEMPFAIL of sysexits.h): start it again."""

MARKER = "stopped.json"
"""Stands in output_dir while a run that stopped so waits to go on: some launchers end with a status of their own."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(Exception):
    """The run was asked to stop, finished its step and saved."""


class StopSignals:
    """Remembers that a signal came, for the end of the step; where no step is running, ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.num_saved = 0
        """Steps of the newest checkpoint, as far as is known; for the message."""
        self.leave: Callable[[], None] = lambda: None
        """Called before the process ends at once."""
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
        state = f"the newest checkpoint is of step {self.num_saved}" if self.num_saved else "there is no checkpoint yet"
        with contextlib.suppress(OSError):  # nobody may listen any more
            # Not print(), which may be what the signal broke into.
            os.write(sys.stderr.fileno(), f"sft: {name}: stopped; {state}\n".encode())
        with contextlib.suppress(Exception):
            self.leave()
        os._exit(STOPPED)
