"""`mvtrain prepare --from`: rows of a public format -> rows of ours, and those that cannot be, with the reasons."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mvtrain.commands.prepare_files import (
    RejectedRows,
    checked_output,
    progress,
    rejected_path,
    rejected_rows,
    write_row,
)
from mvtrain.commands.prepare_overlap import OVERLAP, row_text, search_for
from mvtrain.data.importers import load_format
from mvtrain.data.importers.columns import Columns, choose_columns
from mvtrain.data.importers.convert import Converted, Format, RejectedRow, convert_row
from mvtrain.data.trace_files import Row, read_rows
from mvtrain.folders import whole_file
from mvtrain.overlap import OverlapSearch, describe

NOT_AN_OBJECT = "not a JSON object"
ID_COLUMNS = ("id", "uuid", "unique_id")


@dataclass
class Summary:
    """What became of the rows."""

    format: str
    out: str
    rows: int = 0
    written: int = 0
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected rows by reason; a row with two reasons counts under both."""
    blocks: int = 0
    blocks_without_conclusion: int = 0
    blocks_with_one_path: int = 0
    overlapping: int = 0
    """Rows with an evaluation problem, left out or not."""

    def add(self, converted: Converted) -> None:
        self.written += 1
        self.blocks += converted.num_blocks
        self.blocks_without_conclusion += converted.num_without_conclusion
        self.blocks_with_one_path += converted.num_one_path


def run_import(args: argparse.Namespace) -> int:
    """Convert a file. The status is 0 if a row was written, else 1."""
    if args.file is None:
        raise ValueError("--from needs the file to read: mvtrain prepare --from FORMAT FILE --out OUT.jsonl")
    out = checked_output(args.out, [args.file])
    if Path(args.file).suffix.lower() not in (".jsonl", ".ndjson", ".parquet"):
        raise ValueError(f"{args.file}: JSON Lines (.jsonl, .ndjson) and .parquet are read")
    screen = search_for(args.overlap, args.data_dir)
    importer = _Importer(args, load_format(args.format), screen, Summary(args.format, str(out)))
    with rejected_rows(out) as rejected, whole_file(out) as file, progress(f"reading {args.file}") as advance:
        importer.read(args.file, file, rejected, advance)
    _print(importer.summary, out, screen, args.json)
    return 0 if importer.summary.written else 1


class _Importer:
    """Reads one file row by row; nothing of a row is kept."""

    def __init__(self, args: argparse.Namespace, form: Format, screen: OverlapSearch | None, summary: Summary) -> None:
        self.args, self.form, self.screen, self.summary = args, form, screen, summary
        self.columns: Columns | None = None

    def read(self, path: str, file: TextIO, rejected: RejectedRows, advance: Callable[[], None]) -> None:
        for row in read_rows(path):
            self.summary.rows += 1
            reasons = self._write(row, file)
            if reasons:
                rejected.add(row.file, row.number, reasons, row.fields)
                self.summary.rejected += 1
                self.summary.reasons.update(list(dict.fromkeys(reason for reason, _ in reasons)))
            advance()
        if not self.summary.rows:
            raise ValueError(f"{path} has no rows")

    def _write(self, row: Row, file: TextIO) -> list[tuple[str, str]]:
        """Write a row; or the reasons why it is not written."""
        if row.fault is not None:
            return [(NOT_AN_OBJECT, row.fault)]
        args = self.args
        self.columns = self.columns or choose_columns(
            str(row), row.fields, self.form.columns, args.question_column, args.response_column, args.answer_column
        )
        source = f"{self.form.name}: {Path(row.file).name} row {row.number}"
        try:
            converted = convert_row(row.fields, self.form, self.columns, self._id(row), source, args.require_conclusion)
        except RejectedRow as error:
            return [(rejected.reason, rejected.detail) for rejected in error.reasons]
        problems = self.screen.read(str(row), row_text(converted.fields)) if self.screen else []
        self.summary.overlapping += bool(problems)
        if problems and args.drop_overlap:
            return [(OVERLAP, ", ".join(problems))]
        write_row(file, converted.fields)
        self.summary.add(converted)
        return []

    def _id(self, row: Row) -> str:
        values = (row.fields.get(name) for name in ID_COLUMNS)
        found = next((value for value in values if isinstance(value, (str, int)) and value != ""), row.number)
        return found if isinstance(found, str) else f"{self.form.name}-{found}"


def _print(summary: Summary, out: Path, screen: OverlapSearch | None, as_json: bool) -> None:
    file = str(rejected_path(out)) if summary.rejected else None
    report = screen.report() if screen else None
    if as_json:
        result: dict[str, Any] = vars(summary) | {"rejected_file": file, "overlap": report and asdict(report)}
        print(json.dumps(result, ensure_ascii=False))
        return
    print(f"{summary.out}: {summary.written:,} of {summary.rows:,} rows written")
    print(
        f"blocks: {summary.blocks:,}, without a conclusion: {summary.blocks_without_conclusion:,}, "
        f"with one path: {summary.blocks_with_one_path:,}"
    )
    if file:
        print(f"{file}: {summary.rejected:,} left out")
    for reason, count in summary.reasons.most_common():
        print(f"  {count:,} {reason}")
    if report:
        print(f"{describe(report)}\nrows that overlap: {summary.overlapping:,}")
