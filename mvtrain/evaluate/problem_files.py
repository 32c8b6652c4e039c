"""Rows of problems: JSONL, CSV and parquet files, and sets of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".parquet", ".csv")
EXTRA = "mvtrain[train]"
"""The extra that has `datasets`, which brings pyarrow along."""


@dataclass(frozen=True)
class Row:
    """One row, with the place it comes from."""

    source: str
    place: str
    """`line 7` of JSONL, else `row 7`; the heading of a CSV file is no row."""
    number: int
    """From 1: which row it is, blank lines not counted."""
    fields: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.source} {self.place}"


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, by its suffix; any other than `.parquet` and `.csv` is read as JSONL.

    Raises ValueError that names file and row for what cannot be read, ImportError without pyarrow for parquet.
    """
    readers = {".parquet": _read_parquet, ".csv": _read_csv}
    try:
        yield from readers.get(path.suffix.lower(), _read_json_lines)(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8; convert the file to UTF-8") from None


def _read_json_lines(path: Path) -> Iterator[Row]:
    count = 0
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            count += 1
            try:
                fields = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path} line {number}: not JSON: {error}") from None
            if not isinstance(fields, dict):
                raise ValueError(f"{path} line {number}: expected a JSON object, found {type(fields).__name__}")
            yield Row(str(path), f"line {number}", count, fields)


def _read_csv(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for number, fields in enumerate(reader, 1):
                if None in fields:
                    raise ValueError(f"{path} row {number}: more fields than the heading names")
                yield Row(str(path), f"row {number}", number, fields)
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num}: not CSV: {error}") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{path}: reading parquet needs pyarrow; pip install '{EXTRA}'") from None
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from None
    for number, fields in enumerate(rows, 1):
        yield Row(str(path), f"row {number}", number, fields)


def rows_from_hub(hub: str, config: str | None, split: str, what: str, gated: bool = False) -> Iterator[Row]:
    """The rows of a split. `what` is named in errors.

    Raises:
        ImportError: `datasets` is not installed.
        OSError: the hub cannot be reached, or does not give the set without a login.
    """
    try:
        from datasets import load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise ImportError(f"reading {what} needs `datasets`: pip install '{EXTRA}'") from None
    local = "give --data-dir with a local copy, or a JSONL file of problems"
    try:
        rows = load_dataset(hub, config, split=split)
    except DatasetNotFoundError as error:
        login = f"accept the terms at https://huggingface.co/datasets/{hub}, then `hf auth login`; or " if gated else ""
        raise OSError(f"{what}: {hub} is not to be had ({error}); {login}{local}") from None
    except ConnectionError as error:
        raise OSError(f"{what}: the hub cannot be reached ({error}); {local}") from None
    for number, fields in enumerate(rows, 1):
        yield Row(f"{hub} ({split})", f"row {number}", number, fields)
