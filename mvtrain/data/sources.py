"""A data source -> records: a question, a trajectory and perhaps an answer, each with the place it comes from.

A source is a JSONL or parquet file, or a data set of the Hugging Face hub (`owner/name`, or `owner/name:split`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from mvtrain.data.curriculum import Kind
from mvtrain.prompt import PARALLEL_SUFFIX

Style = Literal["auto", "text", "trajectory", "response"]
STYLES: tuple[Style, ...] = ("auto", "text", "trajectory", "response")

TRAJECTORY_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "parallel": ("deepseek_thinking_trajectory_parallel",),
    "sequential": ("deepseek_thinking_trajectory", "deepseek_thinking_trajectory_sequential"),
}
"""Columns of the public sets, the preferred one first."""
ANSWER_COLUMN = "deepseek_attempt"

_FILE_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")
_TURN, _END = "<|im_start|>assistant\n", "<|im_end|>"


class RowError(ValueError):
    """A row that cannot be trained on. `where` names file and row, `reason` is the same for rows of the same fault;
    `line` is what stands there, if it is no row at all."""

    def __init__(self, where: str, message: str, reason: str, line: str = "") -> None:
        super().__init__(f"{where}: {message}")
        self.where, self.message, self.reason, self.line = where, message, reason, line

    def __reduce__(self) -> tuple:
        return RowError, (self.where, self.message, self.reason, self.line)


@dataclass(frozen=True)
class Record:
    """One row of a source."""

    question: str
    trajectory: str
    """The reasoning; or, where `answer` is None, the whole of the assistant's turn."""
    answer: str | None
    kind: Kind
    where: str
    """For instance `traces.jsonl row 14`; rows count from 1 (in JSONL, lines)."""
    prompt: str | None = None
    """The text up to the last assistant's turn, where the source has ready ChatML; `question` is then empty."""


@dataclass(frozen=True)
class _Columns:
    style: Style
    trajectory: str
    answer: str | None = None


def read_records(
    source: str | Path,
    kind: Kind,
    *,
    style: Style = "auto",
    trajectory_column: str | None = None,
    bad_rows: Literal["raise", "yield"] = "raise",
) -> Iterator[Record | RowError]:
    """Read a source row by row.

    Args:
        source: path of a JSONL or parquet file, `owner/name` of a data set on the hub (its split `train`), or
            `owner/name:split`.
        kind: which trajectory to read, and which words the prompt ends in. Ready ChatML says so itself.
        style: `text` (ready ChatML), `trajectory` (columns of the public sets) or `response` (`question` and
            `response`); `auto` takes the first of them whose column the first row has.
        trajectory_column: the column to read trajectories from, in place of those of `TRAJECTORY_COLUMNS`.
        bad_rows: raise the error of a row with a missing, empty or non-string field or of a line that is no JSON
            object, or yield it in the row's place.

    Raises:
        RowError: names file, row and column.
        ValueError: an unknown kind or style, or no known column.
        FileNotFoundError: no such file.
        ImportError: the hub or a parquet file needs a package that is not installed.
    """
    if kind not in TRAJECTORY_COLUMNS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(TRAJECTORY_COLUMNS)}")
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    rows = read_fields(source)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source} has no rows")
    columns = None
    for where, fields in chain([first], rows):
        try:
            if isinstance(fields, RowError):
                raise fields
            columns = columns or _choose_columns(source, fields, kind, style, trajectory_column)
            yield _record(where, fields, kind, columns)
        except RowError as error:
            if bad_rows == "raise":
                raise
            yield error


def read_fields(source: str | Path) -> Iterator[tuple[str, Mapping[str, Any] | RowError]]:
    """(label of the row, its fields or why there are none) for every row of a file or a data set of the hub."""
    if Path(source).is_dir():
        raise ValueError(f"{source} is a folder; name a file in it")
    if Path(source).suffix.lower() in _FILE_SUFFIXES or Path(source).is_file():
        from mvtrain.data.trace_files import read_rows

        for row in read_rows(Path(source)):
            fault = row.fault and RowError(str(row), row.fault, "not a JSON object", row.line)
            yield str(row), fault or row.fields
        return
    name, _, split = str(source).partition(":")
    for number, fields in enumerate(_load_from_hub(name, split or "train"), 1):
        yield f"{name} ({split or 'train'}) row {number}", fields


def _load_from_hub(name: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(f"reading {name} from the hub needs `datasets`: pip install 'mvtrain[train]'") from None
    return load_dataset(name, split=split)


def _choose_columns(
    source: str | Path, fields: Mapping[str, Any], kind: Kind, style: Style, trajectory_column: str | None
) -> _Columns:
    """What to read, decided once a source by its first row."""
    trajectories = (trajectory_column,) if trajectory_column else TRAJECTORY_COLUMNS[kind]
    columns = {"text": ("text",), "trajectory": trajectories, "response": ("response",)}
    if style == "auto":
        choices = ("trajectory",) if trajectory_column else ("text", "trajectory", "response")
    else:
        choices = (style,)
    for choice in choices:
        for column in columns[choice]:
            if column in fields:
                answer = ANSWER_COLUMN if choice == "trajectory" and ANSWER_COLUMN in fields else None
                return _Columns(choice, column, answer)
    wanted = [column for choice in choices for column in columns[choice]]
    raise ValueError(f"{source} has no column {' or '.join(wanted)}; it has {', '.join(fields) or 'none'}")


def _record(where: str, fields: Mapping[str, Any], kind: Kind, columns: _Columns) -> Record:
    trajectory = _string(where, fields, columns.trajectory)
    if columns.style == "text":
        return _from_chatml(where, trajectory)
    question = _string(where, fields, "question")
    answer = _string(where, fields, columns.answer) if columns.answer else None
    if columns.style == "trajectory" and kind == "sequential" and "<think>" not in trajectory.lower():
        trajectory = f"<Think>\n{trajectory.strip()}\n</Think>"
    return Record(question, trajectory, answer, kind, where)


def _string(where: str, fields: Mapping[str, Any], column: str) -> str:
    value = fields.get(column)
    if isinstance(value, str) and value.strip():
        return value
    if column not in fields:
        message, reason = f"column {column!r} is missing; the row has {', '.join(fields) or 'none'}", "missing"
    elif isinstance(value, str):
        message, reason = f"column {column!r} is empty; expected text", "empty"
    else:
        message, reason = f"column {column!r} is {value!r:.60}; expected text", "not text"
    raise RowError(where, message, f"column {column!r} {reason}")


def _from_chatml(where: str, text: str) -> Record:
    """Cut ready ChatML before and after the text of its last assistant's turn."""
    before, turn, after = text.rpartition(_TURN)
    if not turn:
        raise RowError(where, f"column 'text' has no turn {_TURN!r}; expected ready ChatML", "no assistant's turn")
    response, end, rest = after.partition(_END)
    if not end or not response.strip():
        fault = "is empty" if end else f"does not end in {_END}"
        raise RowError(where, f"column 'text': the last assistant's turn {fault}", f"assistant's turn {fault}")
    if rest.strip():
        raise RowError(
            where, f"column 'text' goes on after the last assistant's turn: {rest.strip()[:60]!r}", "text goes on"
        )
    parallel = "<Parallel>" in response or PARALLEL_SUFFIX in before
    return Record("", response, None, "parallel" if parallel else "sequential", where, prompt=before + turn)
