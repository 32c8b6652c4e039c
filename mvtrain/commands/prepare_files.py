"""What the ways of `mvtrain prepare` share: the output's name, rows that are left out, and a bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mvtrain.folders import whole_file


class RejectedRows:
    """`OUT.rejected.jsonl`: rows that were left out, with the reasons. Without any there is no such file."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.num_rows = 0

    def add(self, file: str, row: int, reasons: list[tuple[str, str]], fields: Mapping[str, Any]) -> None:
        """Write one row. `reasons`: (what it is counted by, where and what)."""
        named = [{"reason": reason, "detail": detail} for reason, detail in reasons]
        write_row(self.file, {"file": file, "row": row, "reasons": named, "fields": fields})
        self.num_rows += 1


def rejected_path(out: Path) -> Path:
    return out.with_name(out.name + ".rejected.jsonl")


@contextmanager
def rejected_rows(out: Path) -> Iterator[RejectedRows]:
    """The rejected rows of an output; a file of an earlier run is replaced, or removed if nothing is rejected now."""
    path = rejected_path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        rejected = RejectedRows(file)
        yield rejected
    if not rejected.num_rows:
        path.unlink()


def write_row(file: TextIO, row: Mapping[str, Any]) -> None:
    """One line of JSON; what JSON cannot say (bytes and dates of parquet) is written as text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    if not line.isascii() and any("\ud800" <= character <= "\udfff" for character in line):
        line = json.dumps(row, default=str)  # UTF-8 has no halves of surrogate pairs; JSON's escapes do
    file.write(line + "\n")


def checked_output(out: str | None, inputs: list[str]) -> Path:
    """The output's path. Raises ValueError without one, for another suffix, or where it is an input."""
    if out is None:
        raise ValueError("--out FILE.jsonl is missing: where the rows are to be written")
    path = Path(out)
    if path.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"--out {out}: JSON Lines are written; give the file a name that ends in .jsonl")
    for written in (path, rejected_path(path)):
        if written.resolve() in [Path(file).resolve() for file in inputs]:
            raise ValueError(f"--out {out}: {written} is an input; write to another file")
    return path


@contextmanager
def progress(what: str) -> Iterator[Callable[[], None]]:
    """A function to call once a row. Shows rows and seconds on standard error if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), TextColumn("{task.completed:,} rows"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda: bar.advance(task)
