"""The report's summary as Markdown, for issues, pull requests and model cards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.report import wording
from mvtrain.evaluate.report.html import budget_rows, command_line, header_facts, report_title
from mvtrain.evaluate.report.payload import count_reasons, ungradable_rows

MOST_UNGRADABLE = 50
_LONGEST_CELL = 200
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&])")

_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, what turns the direction of text around, and lone surrogates."""


def render_markdown(header: Mapping[str, Any], results: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """Header, summary, differences, budgets and ungradable answers. Text of a model cannot become markup."""
    groups = results.get("groups") or []
    parts = [f"# Evaluation of {_cell(report_title(header))}", _facts(header, results)]
    parts += [f"**Note.** {_cell(warning)}" for warning in wording.warnings_of(results)]
    parts.append(_summary(groups))
    if results.get("paired"):
        rows = [(what, difference, p) for what, difference, p, _ in map(wording.describe_difference, results["paired"])]
        parts += ["## Differences on the same problems", _table(("comparison", "accuracy", "p"), rows)]
    if results.get("budgets"):
        parts += ["## Accuracy by critical path", _budgets(results)]
    parts += ["## Grading", _grading(samples)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(header: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    lines = [f"- {name}: {_cell(value)}" for name, value in header_facts(header, results)]
    lines.append(f"- {_cell(wording.consistency(header.get('verified'))[1])}")
    if command := command_line(header):
        lines.append(f"\n```\n{command.replace('```', '` ` `')}\n```")
    return "\n".join(lines)


def _summary(groups: Sequence[Mapping[str, Any]]) -> str:
    columns = wording.headline_keys(list(groups))
    rows = []
    for group in groups:
        figures = wording.measures_of(group)
        counts = (group.get("num_problems", "-"), group.get("num_samples", "-"))
        values = [figures[column.key][1] if column.key in figures else wording.NOTHING for column in columns]
        rows.append((group.get("task"), group.get("mode"), *counts, *values))
    return _table(("task", "mode", "problems", "samples", *(column.label for column in columns)), rows)


def _budgets(results: Mapping[str, Any]) -> str:
    names = ("task", "mode", "policy", "budget", "accuracy", "critical_path", "total_tokens", "share_cut")
    titles = ("task", "mode", "cut answers", "budget", "accuracy", "critical path", "tokens", "cut")
    return _table(titles, [tuple(row[name] for name in names) for row in budget_rows(results)])


def _grading(samples: Sequence[Sample]) -> str:
    counts = ", ".join(f"{number:,} {name}" for name, number in count_reasons(samples).items())
    ungradable = ungradable_rows(samples)
    if not ungradable:
        return f"{counts}."
    rows = [(f"{s.task} / {s.id} / {s.sample}", s.mode, s.answer, s.reference, s.reason) for s in ungradable]
    table = _table(("problem", "mode", "answer", "reference", "why"), rows[:MOST_UNGRADABLE])
    more = f"\n\n{len(rows) - MOST_UNGRADABLE} more in samples.jsonl." if len(rows) > MOST_UNGRADABLE else ""
    return f"{counts}. Ungradable answers count as wrong:\n\n{table}{more}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles)]
    body = [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines, *body])


def _cell(value: Any) -> str:
    """One line of text in which nothing is markup."""
    text = " ".join(_UNSEEN.sub("\ufffd", str("-" if value is None else value)).split())
    text = text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 1] + "…"
    return _SPECIAL.sub(r"\\\1", text)
