"""Folders that runs write into: one run at a time, and files that appear whole or not at all. Standard library only."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class FolderLock:
    """One process at a time in a folder; the system gives it up when the process ends.

    Args:
        what: what works there, for the message.

    Raises ValueError where another one has it.
    """

    def __init__(self, folder: Path, what: str) -> None:
        self.file = folder / ".lock"
        while True:
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._descriptor)
                raise ValueError(f"{folder}: another {what} works here; wait for it, or give another folder") from None
            if self._is_current():
                return
            os.close(self._descriptor)  # its holder has removed it meanwhile

    def _is_current(self) -> bool:
        try:
            return os.stat(self.file).st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        self.file.unlink(missing_ok=True)
        os.close(self._descriptor)


@contextmanager
def whole_file(file: Path) -> Iterator[TextIO]:
    """A text that takes its name when it is complete; until then there is what was there before."""
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", encoding="utf-8", errors="replace") as stream:  # models write lone surrogates
            yield stream
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(file: Path, text: str) -> None:
    """The whole text under this name, or what was there before."""
    with whole_file(file) as stream:
        stream.write(text)
