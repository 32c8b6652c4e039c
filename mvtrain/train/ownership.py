"""One run at a time in an output_dir: two would remove each other's checkpoints and write over each other's logs.

The first rank owns `output_dir/owner.json`. Its time of modification is a sign of life, renewed every few seconds: by
that other hosts see that the owner lives. On the owner's own machine its process is looked for instead. All times are
the file system's, so that clocks need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvtrain.train import alive
from mvtrain.train.processes import Ranks

FILE_NAME = "owner.json"
BEAT = 10.0
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without one after which an owner on another machine is taken for dead. A beat may be late, as file systems
stall; an owner that was taken for dead by mistake finds out before it saves, and stops."""


class InUse(RuntimeError):
    """Another run works in this folder."""


class Ownership:
    """Of a folder, by this process. On the first rank only."""

    def __init__(self, folder: Path, note: Callable[[str], None], beat: float = BEAT, silence: float = SILENCE) -> None:
        """Returns when the folder is ours; waits for signs of life where the owner may be dead, on another machine.

        Raises:
            InUse: it is another run's, that lives.
            OSError: the folder cannot be written.
        """
        self.file = folder / FILE_NAME
        self.token = secrets.token_hex(8)
        self._note, self._silence = note, silence
        self._mine = folder / f"{FILE_NAME}.{self.token}"
        self._acquire()
        self._released = threading.Event()
        threading.Thread(target=self._live, args=(beat,), name="owner", daemon=True).start()

    def lost(self) -> str | None:
        """What to say where the folder is no longer ours. One that is nobody's, as the file was removed, is ours."""
        try:
            owner = self._read()
            if owner is None:
                self._acquire()
            elif owner.get("token") != self.token:
                return f"{_who(owner)} has taken {self.file.parent} over; this run writes nothing more there"
        except InUse as error:
            return str(error)
        except OSError:  # of the file system; nothing is known
            pass
        return None

    def release(self) -> None:
        """Leave it to the next run."""
        self._released.set()
        with contextlib.suppress(OSError):
            if (self._read() or {}).get("token") == self.token:
                self.file.unlink()

    def _acquire(self) -> None:
        self._mine.write_text(json.dumps(self._facts()) + "\n")
        try:
            while not self._take():
                pass
            # Kept open: if somebody takes over, signs of life go to a file without a name, and not into theirs.
            self._descriptor = os.open(self.file, os.O_RDWR)
        finally:
            self._mine.unlink(missing_ok=True)

    def _facts(self) -> dict[str, Any]:
        pid = os.getpid()
        return {
            "token": self.token,
            "host": socket.gethostname(),
            "pid": pid,
            "started": alive.started(pid),
            "place": alive.place(),
        }

    def _take(self) -> bool:
        """One attempt. False: look again."""
        if self._create():
            return True
        owner = self._read()
        if owner is None:
            return False  # it has gone in between
        if self._is_near(owner):
            is_us = owner["pid"] == os.getpid()  # a run before in this very process
            if alive.started(owner["pid"]) == owner["started"] and not is_us:
                raise self._in_use(owner)
        elif not self._await_silence(owner):
            return False
        self._note(f"{self.file.parent}: {_who(owner)} has not ended its run properly; taking over")
        os.replace(self._mine, self.file)
        return True

    def _create(self) -> bool:
        """Only one process succeeds in it, on network file systems too."""
        try:
            os.link(self._mine, self.file)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: nearly as good
            if self.file.exists():
                return False
            os.replace(self._mine, self.file)
        return True

    def _is_near(self, owner: dict[str, Any]) -> bool:
        return owner.get("place") is not None and owner["place"] == alive.place()

    def _await_silence(self, owner: dict[str, Any]) -> bool:
        """Whether the owner shows no sign of life for long enough. False where its file has gone.

        Raises:
            InUse: it shows one.
        """
        told, first = False, None
        while True:
            try:
                seen = self._time_of(self.file)
                if (self._read() or {}).get("token") != owner.get("token"):
                    return False
            except FileNotFoundError:
                return False
            first = seen if first is None else first
            if seen != first:
                raise self._in_use(owner)
            os.utime(self._mine)
            silent = self._time_of(self._mine) - seen
            if silent >= self._silence:
                return True
            if not told:
                left = self._silence - silent
                self._note(
                    f"{self.file.parent}: {_who(owner)} was at work here {max(0.0, silent):.0f} s ago; waiting for a "
                    f"sign of life, at most {left:.0f} s"
                )
                told = True
            time.sleep(min(1.0, self._silence / 10))

    def _time_of(self, file: Path) -> float:
        with file.open("rb") as stream:  # opening has a network file system ask again
            return os.fstat(stream.fileno()).st_mtime

    def _read(self) -> dict[str, Any] | None:
        """None where there is no owner. A file that is not ours to understand has an owner of whom nothing is known."""
        try:
            return json.loads(self.file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}

    def _in_use(self, owner: dict[str, Any]) -> InUse:
        return InUse(
            f"{self.file.parent} is in use by another run, {_who(owner)}: end that one, or choose another output_dir"
        )

    def _live(self, beat: float) -> None:
        while not self._released.wait(beat):
            with contextlib.suppress(OSError):  # of the file system; it may come back
                os.utime(self._descriptor)


def check_owned(owned: Ownership | None, ranks: Ranks) -> None:
    """Called by every rank before something is written or removed.

    Raises:
        InUse: on every rank: another run has taken the folder over.
    """
    problem = ranks.gather(owned.lost() if owned is not None else None)[0]
    if problem:
        raise InUse(problem)


def _who(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}"
