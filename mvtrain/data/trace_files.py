"""Rows of trace files: JSON Lines, parquet or one plain text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRACE_COLUMNS = ("response", "deepseek_thinking_trajectory_parallel", "text", "trace")
"""Where a trace is looked for when no column is named: the first of these that a file has."""

_ASSISTANT = re.compile(r"<\|im_start\|>assistant\s*\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One example of a file."""

    file: str
    number: int
    """1-based. In JSON Lines it is the line, blank lines counted, so that an editor finds it."""
    fields: dict[str, Any]
    fault: str | None = None
    """Why the row cannot be read at all; `fields` is then empty."""
    line: str = ""
    """Of a row that cannot be read: what stands there, with marks for bytes that are not UTF-8."""

    def __str__(self) -> str:
        return f"{self.file} row {self.number}"


def read_rows(path: str | Path) -> Iterator[Row]:
    """The rows of a file, one at a time.

    `.jsonl` and `.ndjson` are JSON Lines, `.parquet` is parquet (pyarrow, extra `train`); any other file is one plain
    text, which becomes one row with the column `trace`. A line that is no JSON object is a row with a `fault`.
    Raises ValueError for a file that cannot be read.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        yield from _read_json_lines(path)
    elif suffix == ".parquet":
        yield from _read_parquet(path)
    elif suffix == ".json":
        raise ValueError(f"{path}: a .json file is not read; write one JSON object per line and name it .jsonl")
    else:
        yield Row(str(path), 1, {"trace": _decode(path.read_bytes(), str(path))})


def _decode(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} is not UTF-8; convert the file to UTF-8") from None


def _read_json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield Row(str(path), number, _json_object(line))
            except ValueError as error:
                yield Row(str(path), number, {}, str(error), line.decode("utf-8", "replace").strip())


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(_decode(line, "the line"))
    except json.JSONDecodeError as error:
        raise ValueError(f"column {error.colno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("JSON nests too deep to be a row") from None
    if not isinstance(fields, dict):
        raise ValueError(f"expected a JSON object, found {type(fields).__name__}")
    return fields


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{path}: reading parquet needs pyarrow; pip install 'mvtrain[train]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(path)
        batches = table.iter_batches(batch_size=256)
        for number, fields in enumerate((fields for batch in batches for fields in batch.to_pylist()), start=1):
            yield Row(str(path), number, fields)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from None


def trace_column(row: Row, column: str | None = None) -> str:
    """The column that holds the trace: `column` if named, else the first of `TRACE_COLUMNS` that the row has.

    Raises ValueError that lists the row's columns.
    """
    wanted = TRACE_COLUMNS if column is None else (column,)
    for name in wanted:
        if name in row.fields:
            return name
    found = ", ".join(row.fields) or "none"
    if column is None:
        raise ValueError(f"{row}: no column {', '.join(TRACE_COLUMNS)}; name one with --column: {found}")
    raise ValueError(f"{row}: no column {column!r}; the columns are: {found}")


def trace_span(value: str) -> tuple[int, int]:
    """Where in a column's text the trace stands: all of it, or the assistant's turn of a ChatML conversation.

    Raises ValueError for a conversation without exactly one assistant's turn.
    """
    if "<|im_start|>" not in value:
        return 0, len(value)
    turns = list(_ASSISTANT.finditer(value))
    if len(turns) != 1:
        raise ValueError(f"a conversation with {len(turns)} assistant turns; expected one")
    return turns[0].span(1)
