"""Show traces in a browser: training data, samples of an evaluation, or what `mvtrain generate --trace` wrote.

Writes one page that needs nothing else: lanes of who wrote when, and the text as a tree.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvtrain.data.trace_files import TRACE_COLUMNS, Row, read_rows, trace_column, trace_span

GENERATOR = '<meta name="generator" content="mvtrain view">'
"""Marks our pages: a file without it is never overwritten."""
LIMIT = 200
_QUESTIONS = ("question", "problem", "prompt")
_REFERENCES = ("answer", "reference", "solution")
_BEFORE = "deepseek_thinking_trajectory"
"""The column with the sequential chain that a trace was made of."""
_LISTED = 160
"""Characters of a question in the list of rows."""
_TITLE = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvtrain view FILE [options]"
    parser.formatter_class = functools.partial(argparse.HelpFormatter, max_help_position=30, width=110)
    add = parser.add_argument
    add("file", metavar="FILE", help="JSON Lines, parquet, or one trace as plain text")
    add("--row", metavar="N|ID", help="only this row: its number (the line in JSON Lines), or what its `id` says")
    add("--limit", type=int, default=LIMIT, metavar="N", help=f"at most so many rows (default: {LIMIT})")
    add("--column", help=f"the column with the trace (default: the first of {', '.join(TRACE_COLUMNS)})")
    add("--tokenizer", metavar="PATH", help="a local checkpoint's tokenizer, for text without tokens (default: words)")
    add("--scheme", choices=["isolated", "original"], default="isolated",
        help="positions and visibility of text without tokens (default: isolated)")  # fmt: skip
    add("--out", metavar="PAGE", help="the page to write (default: FILE's name with .html, in the current folder)")
    add("--no-open", action="store_true", help="write the page, but open no browser")


@dataclass
class _Listing:
    """The rows of the page, and what was left out of it."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    num_seen: int = 0
    faults: list[str] = field(default_factory=list)
    """Rows that could not be read at all; their entries say so too."""


def run(args: argparse.Namespace) -> int:
    if args.limit < 1:
        raise ValueError(f"--limit {args.limit}: expected at least 1")
    out = _output(args.file, args.out)
    listing, notes = _write_page(args, out)
    for fault in listing.faults:
        print(fault, file=sys.stderr)
    print(f"{out}: {len(listing.entries)} row{'s' if len(listing.entries) != 1 else ''}")
    for note in notes:
        print(note)
    if not args.no_open:
        _open(out)
    return 0


def write_page(file: Path, out: Path, column: str, limit: int) -> None:
    """The page of a file's first rows, for other commands."""
    options = {"row": None, "tokenizer": None, "scheme": "isolated"}
    _write_page(argparse.Namespace(file=str(file), column=column, limit=limit, **options), out)


def _write_page(args: argparse.Namespace, out: Path) -> tuple[_Listing, list[str]]:
    from mvtrain.folders import write_whole

    listing = _collect(args)
    notes = _notes(args, listing)
    write_whole(out, _page(Path(args.file).name, listing, notes))
    return listing, notes


def _output(file: str, out: str | None) -> Path:
    """Where the page goes. Raises ValueError for a place that holds something else."""
    path = Path(out) if out else Path(Path(file).stem + ".html")
    if path.resolve() == Path(file).resolve():
        raise ValueError(f"{path}: this is the input; name another page with --out")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; name the page with --out")
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:20000]:
        raise ValueError(f"{path}: exists and was not written by `mvtrain view`; name another page with --out")
    return path


def _collect(args: argparse.Namespace) -> _Listing:
    """The entries of the rows that are wanted. Raises ValueError where there is none."""
    tokenizer = _tokenizer(args.tokenizer)
    listing = _Listing()
    column = None
    for row in _wanted(args.file, args.row):
        listing.num_seen += 1
        if len(listing.entries) >= args.limit:
            continue
        if row.fault is None and column is None and _form(row.fields) == "text":
            column = trace_column(row, args.column)
        try:
            record = _record(row, column, tokenizer, args.scheme)
        except ValueError as error:
            if args.row is not None:
                raise ValueError(f"{row}: {error}") from None
            listing.faults.append(f"{row}: {error}")
            record = _empty_record(row, str(error))
        listing.entries.append(_entry(record))
    if not listing.entries:
        wanted = f"no row {args.row}; give a row's number or its `id`" if args.row else "no row in it"
        raise ValueError(f"{args.file}: {wanted}")
    return listing


def _wanted(file: str, wanted: str | None) -> Iterator[Row]:
    """All rows, or those with the number or the id. A number is a number first: ids are asked where none has it."""
    if wanted is None:
        yield from read_rows(file)
        return
    by_id = []
    for row in read_rows(file):
        if wanted.isdecimal() and row.number == int(wanted):
            yield row
            return
        if str(row.fields.get("id", "")) == wanted:
            by_id.append(row)
    yield from by_id


def _tokenizer(path: str | None) -> Any:
    if path is None:
        return None
    if not Path(path).is_dir():
        raise ValueError(f"--tokenizer {path}: no such folder; give a folder with tokenizer files")
    from transformers import AutoTokenizer

    from mvtrain.layout import TagIds

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    tokenizer.model_max_length = int(1e9)  # else every long trace prints a warning
    try:
        TagIds.from_tokenizer(tokenizer)
    except ValueError as error:
        raise ValueError(f"--tokenizer {path}: {error}") from None
    return tokenizer


def _form(fields: dict[str, Any]) -> str:
    """What a row is: a traced "completion", a "sample" of an evaluation, or "text"."""
    if {"text", "token_ids", "position_ids", "nodes"} <= fields.keys():
        return "completion"
    if {"response", "finish_reason", "num_prompt", "critical_path"} <= fields.keys():
        return "sample"
    return "text"


def _record(row: Row, column: str | None, tokenizer: Any, scheme: Any) -> dict[str, Any]:
    """The viewer's record of a row. Raises ValueError where there is no trace in it."""
    from mvtrain.evaluate.trace_view import record_of_completion, record_of_sample, record_of_text

    if row.fault is not None:
        raise ValueError(row.fault)
    fields, title = row.fields, _title(row)
    form = _form(fields)
    if form == "completion":
        return record_of_completion(title, fields, tokenizer)
    if form == "sample":
        return record_of_sample(title, fields, tokenizer, scheme)
    value = fields.get(column)
    if not isinstance(value, str) or not value.strip():
        found = "is empty" if isinstance(value, str) else f"holds {type(value).__name__}" if value else "is missing"
        raise ValueError(f"column {column!r} {found}, expected the text of a trace")
    start, end = trace_span(value)
    references = {name: fields[name] for name in _REFERENCES if isinstance(fields.get(name), (str, int, float))}
    figures = {name: value for name, value in references.items() if len(str(value)) <= 80}
    record = record_of_text(title, _question(fields), value[start:end], tokenizer, scheme, figures)
    before = fields.get(_BEFORE) if column != _BEFORE else None
    return record | ({"before": before} if isinstance(before, str) else {})


def _title(row: Row) -> str:
    parts = [f"row {row.number}"]
    for name in ("task", "mode", "id"):
        if isinstance(row.fields.get(name), (str, int)):
            parts.append(str(row.fields[name]))
    sample = row.fields.get("sample")
    if isinstance(sample, int):
        parts.append(f"sample {sample}")
    return " · ".join(part if len(part) <= _TITLE else part[: _TITLE - 1] + "…" for part in parts)


def _question(fields: dict[str, Any]) -> str:
    return next((fields[name] for name in _QUESTIONS if isinstance(fields.get(name), str)), "")


def _empty_record(row: Row, problem: str) -> dict[str, Any]:
    question = _question(row.fields)
    return {"title": _title(row), "question": question, "response": "", "problems": [problem], "figures": {},
            "tokens": None}  # fmt: skip


def _entry(record: dict[str, Any]) -> dict[str, Any]:
    """A row of the list: what is shown of it there, and the packed record."""
    from mvtrain.evaluate.pages import pack

    figures = record["figures"]
    facts = []
    if "correct" in figures:
        facts.append({True: "correct", False: "wrong"}.get(figures["correct"], "ungradable"))
    for name in ("num_generated", "tokens", "words"):
        if isinstance(figures.get(name), int):
            facts.append(f"{figures[name]:,} {'words' if name == 'words' else 'tokens'}")
    if isinstance(figures.get("parallelism"), (int, float)):
        facts.append(f"parallelism {figures['parallelism']:.2f}")
    count = len(record["problems"])
    facts += [f"{count} problem{'s' if count != 1 else ''}"] if count else []
    question = " ".join(record["question"][: 4 * _LISTED].split())[:_LISTED]
    return {"title": record["title"], "question": question, "facts": " · ".join(facts), "packed": pack(record)}


def _notes(args: argparse.Namespace, listing: _Listing) -> list[str]:
    notes = []
    left_out = listing.num_seen - len(listing.entries)
    if left_out:
        notes.append(f"The first {len(listing.entries)} of {listing.num_seen} rows; --limit or --row shows others.")
    if listing.faults:
        count = len(listing.faults)
        notes.append(f"{count} row{'s' if count != 1 else ''} could not be read, and only their problems are shown.")
    return notes


def _page(name: str, listing: _Listing, notes: list[str]) -> str:
    from mvtrain.evaluate.pages import embed_json, page_text, render_page

    try:
        from markupsafe import Markup
    except ImportError:
        raise ImportError("the page is made with jinja2: pip install 'mvtrain[eval]'") from None
    return render_page(
        page_text("view.html"),
        scripts=[page_text("viewer.js"), page_text("view.js")],
        styles=[page_text("viewer.css"), page_text("view.css")],
        title=name,
        notes=notes,
        single=len(listing.entries) == 1,
        data=Markup(embed_json({"rows": listing.entries})),
    )


def _open(out: Path) -> None:
    import webbrowser

    has_display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_display and webbrowser.open(out.resolve().as_uri()):
        return
    print(f"no browser opened here; open {out} in one")
