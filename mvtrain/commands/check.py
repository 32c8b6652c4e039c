"""Check trace files: report every bad row with line, column and what was expected, and print statistics.

Exit status: 0 if every row is well formed, 1 if one is not, 2 for a file that cannot be read.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mvtrain.data.statistics import Statistics, token_counter
from mvtrain.data.trace_files import TRACE_COLUMNS, Row, read_rows, trace_column, trace_span
from mvtrain.grammar import Problem, check, parse, render

SHOWN_PROBLEMS = 5
"""How many problems of a row are printed; `--json` gives them all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON Lines, parquet, or one trace as plain text")
    parser.add_argument(
        "--column", help=f"the column with the trace (default: the first of {', '.join(TRACE_COLUMNS)})"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="a local checkpoint to count tokens with (default: words)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument("--fix", metavar="OUT", help="write the good rows with canonical text to OUT (JSON Lines)")


@dataclass
class Report:
    """What was found in all files."""

    statistics: Statistics
    num_rows: int = 0
    bad_rows: list[tuple[Row, list[Problem]]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    report = Report(_statistics(args.tokenizer))
    if args.fix:
        _refuse_input_as_output(args.fix, args.files)
    with _fixed_rows(args.fix) as write:
        for path in args.files:
            _check_file(path, args.column, report, write)
    if args.json:
        print(json.dumps(_as_dict(report, args), ensure_ascii=False))
    else:
        _print_report(report, args.fix)
    return 1 if report.bad_rows else 0


def _statistics(tokenizer_path: str | None) -> Statistics:
    if tokenizer_path is None:
        return Statistics()
    if not Path(tokenizer_path).is_dir():
        raise ValueError(f"--tokenizer {tokenizer_path}: no such folder; give a folder with tokenizer files")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, local_files_only=True)
    tokenizer.model_max_length = int(1e9)  # else every long trace prints a warning
    return Statistics(unit="tokens", count=token_counter(tokenizer))


def _check_file(path: str, column: str | None, report: Report, write: Callable[[Row, str, str], None]) -> None:
    name = None
    for row in read_rows(path):
        report.num_rows += 1
        if row.fault is not None:
            report.bad_rows.append((row, [Problem(1, 1, row.fault, "one JSON object")]))
            continue
        name = name or trace_column(row, column)
        problems = _check_row(row, name, report.statistics, write)
        if problems:
            report.bad_rows.append((row, problems))


def _check_row(row: Row, column: str, statistics: Statistics, write: Callable[[Row, str, str], None]) -> list[Problem]:
    """The problems of a row; a row without any is counted and written."""
    value = row.fields.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is empty" if isinstance(value, str) else f"holds {type(value).__name__}" if value else "is missing"
        return [Problem(1, 1, f"column {column!r} {found}", "the text of a trace")]
    try:
        start, end = trace_span(value)
    except ValueError as error:
        return [Problem(1, 1, str(error), "one <|im_start|>assistant turn", value.split("\n", 1)[0][:80])]
    text = value[start:end]
    problems = check(text)
    if not problems:
        trace = parse(text)
        statistics.add(text, trace)
        write(row, column, value[:start] + render(trace) + value[end:])
    return problems


def _refuse_input_as_output(out: str, files: list[str]) -> None:
    if Path(out).suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"--fix {out}: JSON Lines are written; give the file a name that ends in .jsonl")
    if Path(out).resolve() in [Path(path).resolve() for path in files]:
        raise ValueError(f"--fix {out}: this is an input; write to another file")


@contextmanager
def _fixed_rows(out: str | None) -> Iterator[Callable[[Row, str, str], None]]:
    """A function that writes a row with another text in a column. The file takes its name when all rows are in it."""
    if out is None:
        yield lambda row, column, text: None
        return
    partial = Path(f"{out}.partial")
    try:
        with partial.open("w", encoding="utf-8") as lines:
            yield lambda row, column, text: lines.write(_json_line(row, column, text))
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)


def _json_line(row: Row, column: str, text: str) -> str:
    try:
        return json.dumps({**row.fields, column: text}, ensure_ascii=False) + "\n"
    except TypeError as error:
        raise ValueError(f"{row}: cannot be written as JSON ({error}); drop that column first") from None


def _as_dict(report: Report, args: argparse.Namespace) -> dict:
    problems = [
        {"file": row.file, "row": row.number, **_problem_as_dict(problem)}
        for row, problems in report.bad_rows
        for problem in problems
    ]
    return {
        "files": args.files,
        "rows": report.num_rows,
        "bad_rows": len(report.bad_rows),
        "problems": problems,
        "statistics": report.statistics.as_dict(),
        "fixed": args.fix and {"file": args.fix, "rows": report.statistics.num_rows},
    }


def _problem_as_dict(problem: Problem) -> dict:
    names = ("line", "column", "message", "expected", "excerpt")
    return {name: getattr(problem, name) for name in names}


def _print_report(report: Report, fix: str | None) -> None:
    for row, problems in report.bad_rows:
        for problem in problems[:SHOWN_PROBLEMS]:
            print(f"{row}: {problem}\n{problem.excerpt}")
        if len(problems) > SHOWN_PROBLEMS:
            print(f"{row}: {len(problems) - SHOWN_PROBLEMS} more problems (--json shows all)")
    _print_statistics(report.statistics)
    num_bad = len(report.bad_rows)
    print(f"{report.num_rows} rows, {num_bad} bad")
    if fix:
        print(f"{fix}: {report.statistics.num_rows} rows written, {num_bad} bad rows left out")


def _print_statistics(statistics: Statistics) -> None:
    from rich.console import Console
    from rich.table import Table

    if not statistics.num_rows:
        return
    title = f"good rows: {statistics.num_rows}, with blocks: {statistics.num_rows_with_blocks}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("mean", "min", "max", "sum"):
        table.add_column(heading, justify="right")
    for name, spread in statistics.spreads().items():
        label = {"tokens": statistics.unit, "critical_path": f"{statistics.unit} on the critical path"}.get(name, name)
        numbers = spread.as_dict()
        total = f"{numbers['sum']:,.0f}" if name not in ("depth", "parallelism") else ""
        extremes = ".2f" if name == "parallelism" else ",.0f"
        cells = [f"{numbers['mean']:,.2f}", *(format(numbers[key], extremes) for key in ("min", "max")), total]
        table.add_row(label.replace("_", " "), *cells)
    Console(soft_wrap=True).print(table)
