"""Which columns of a foreign row hold the question, the response and the answer, and the text that stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvtrain.data.importers.markup import Rejected

MISSING = "a column is missing"
EMPTY = "a column is empty"
NOT_TEXT = "a column holds no text"
NO_TURN = "a conversation without the turn"

_TURN = re.compile(r"<\|im_start\|>(\w+)[ \t]*\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class KnownColumns:
    """Names to look for, the preferred one first. `a.b` is the field `b` of the column `a`."""

    question: tuple[str, ...]
    response: tuple[str, ...]
    answer: tuple[str, ...]
    beside: tuple[tuple[str, str], ...] = ()
    """(response column, the column with what follows the reasoning): the response is then in two columns."""


@dataclass(frozen=True)
class Columns:
    question: str
    response: str
    answer: str | None
    attempt: str | None = None
    """The column with what follows the reasoning, where that is not in `response`."""


def choose_columns(
    where: str,
    fields: Mapping[str, Any],
    known: KnownColumns,
    question: str | None = None,
    response: str | None = None,
    answer: str | None = None,
) -> Columns:
    """Which columns to read, by the first row of a file; a name that is given goes before the known ones.

    Raises ValueError that lists what was looked for and what the row has.
    """
    chosen: dict[str, str | None] = {}
    for kind, given, names in (
        ("question", question, known.question),
        ("response", response, known.response),
        ("answer", answer, known.answer),
    ):
        names = (given,) if given else names
        found = [name for name in names if has_column(fields, name)]
        if kind == "answer" and not given:
            found = [name for name in found if name != chosen["response"]]
        elif not found:
            has = ", ".join(fields) or "none"
            raise ValueError(f"{where}: no column {' or '.join(names)}; name one with --{kind}-column: {has}")
        chosen[kind] = found[0] if found else None
    attempt = dict(known.beside).get(chosen["response"])
    return Columns(**chosen, attempt=attempt if attempt and has_column(fields, attempt) else None)


def has_column(fields: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column, or the field of one, be it empty or not."""
    if name in fields:
        return True
    column, _, field = name.rpartition(".")
    inside = lookup(fields, column) if column else None
    return isinstance(inside, Mapping) and field in inside


def lookup(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field of one (`extra_info.question`); None where there is none."""
    if name in fields:
        return fields[name]
    value: Any = fields
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def turn_text(fields: Mapping[str, Any], name: str, role: str) -> tuple[str, bool]:
    """The text of a column, and whether it stood in a conversation.

    A conversation (a list of `role` and `content`, or ChatML) gives the last turn of `role`.

    Raises:
        Rejected: the column is missing, empty or no text, or has no such turn.
    """
    value = lookup(fields, name)
    if value is None:
        raise Rejected(MISSING, f"{name!r}; the row has {', '.join(fields) or 'none'}")
    if isinstance(value, str) and "<|im_start|>" in value:
        value = [{"role": turn.group(1), "content": turn.group(2)} for turn in _TURN.finditer(value)]
    in_conversation = isinstance(value, list)
    if in_conversation:
        turns = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == role]
        if not turns:
            raise Rejected(NO_TURN, f"column {name!r} has no turn of {role!r}")
        value = turns[-1]
    if not isinstance(value, str):
        raise Rejected(NOT_TEXT, f"{name!r} is {value!r:.60}")
    if not value.strip():
        raise Rejected(EMPTY, repr(name))
    return value.replace("\r\n", "\n").strip(), in_conversation


def answer_text(fields: Mapping[str, Any], name: str | None) -> str | None:
    """A known answer as text; None where there is none."""
    value = lookup(fields, name) if name else None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None
