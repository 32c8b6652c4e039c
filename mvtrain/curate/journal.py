"""Finished records, a line each, as they finish: what a killed run has, and what outputs are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvtrain.curate.records import Done

FORGOTTEN = "forgotten"
"""Marks a line that takes a record away."""


@dataclass(frozen=True)
class _Entry:
    """Where a record's line stands, and as much of it as decides whether it has to be made again."""

    offset: int
    digest: str
    stage: str


class Journal:
    """A file that only grows. Of several lines of a record the last one counts. Memory holds an entry per record."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._entries: dict[int, _Entry] = {}
        self._stream = open(file, "a+b")  # noqa: SIM115 (closed by `close`)
        self._read()

    def _read(self) -> None:
        """Lines that a killed run has left; one that was cut off in the middle is taken away."""
        self._stream.seek(0)
        offset = 0
        for line in self._stream:
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            self._note(offset, row)
            offset += len(line)
        self._stream.truncate(offset)

    def _note(self, offset: int, row: dict[str, Any]) -> None:
        if row.get(FORGOTTEN):
            self._entries.pop(row["number"], None)
            return
        self._entries[row["number"]] = _Entry(offset, row["digest"], row["stage"])

    def add(self, done: Done) -> None:
        self._append({"digest": done.source.digest, **asdict(done)})

    def _append(self, row: dict[str, Any]) -> None:
        self._stream.seek(0, 2)
        offset = self._stream.tell()
        self._stream.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
        self._stream.flush()
        self._note(offset, row)

    def has(self, number: int, digest: str) -> bool:
        """Whether this very record is finished. One that the endpoint, or a fault of ours, has failed is not."""
        entry = self._entries.get(number)
        return entry is not None and entry.digest == digest and entry.stage not in ("endpoint", "internal")

    def forget_other(self, number: int, digest: str) -> None:
        """Leave out a record that stood in this place of the input before it changed, now and in later runs."""
        if number in self._entries and self._entries[number].digest != digest:
            self._append({"number": number, FORGOTTEN: True})

    def forget_from(self, number: int) -> None:
        """Leave out records that the input does not have any more."""
        self._entries = {n: entry for n, entry in self._entries.items() if n < number}

    def __len__(self) -> int:
        return len(self._entries)

    def rows(self) -> Iterator[dict[str, Any]]:
        """All records in the order of the input, one at a time."""
        for number in sorted(self._entries):
            self._stream.seek(self._entries[number].offset)
            yield json.loads(self._stream.readline())

    def close(self) -> None:
        self._stream.close()
