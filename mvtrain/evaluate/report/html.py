"""The report as one HTML file that opens from disk and contacts nothing."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import resources
from pathlib import PurePath
from typing import Any

from mvtrain.evaluate.pages import embed_json, page_text, render_page
from mvtrain.evaluate.records import MODES, Sample
from mvtrain.evaluate.report import wording
from mvtrain.evaluate.report.payload import (
    Payload,
    build_payload,
    count_reasons,
    describe_payload,
    mode_place,
    sample_link,
    ungradable_rows,
)
from mvtrain.evaluate.report.plots import draw_plots, spans_the_page

MOST_UNGRADABLE = 200
"""Rows of the section of ungradable answers; the table below finds all of them."""
_CUT_ANSWER = 400
_SCRIPTS = ("expand.js", "rows.js", "report.js")
_SLACK = 4_000  # bytes: the sentences about the payload are longer or shorter than those of an empty one
_EMPTY = Payload(index="", records=[], num_samples=0, levels="", num_tokens_given=0)


def render_html(
    header: Mapping[str, Any], results: Mapping[str, Any], samples: Sequence[Sample], max_bytes: int
) -> str:
    """The page, at most `max_bytes` long as UTF-8.

    Raises ValueError where `max_bytes` is too few for the page without a sample.
    """
    values = page_values(header, results, samples)
    fixed = len(_render(values, _EMPTY, max_bytes).encode("utf-8", "replace")) + _SLACK
    if fixed > max_bytes:
        raise ValueError(
            f"max_bytes is {max_bytes:,}, but the report takes {fixed:,} bytes without a single sample:"
            " expected more, such as 30,000,000"
        )
    page = _render(values, build_payload(samples, max_bytes - fixed), max_bytes)
    assert len(page.encode("utf-8", "replace")) <= max_bytes
    return page


def page_values(header: Mapping[str, Any], results: Mapping[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """Everything the template shows, the payload left out."""
    groups = sorted(results.get("groups") or [], key=_group_place)
    ungradable = ungradable_rows(samples)
    return {
        "title": report_title(header),
        "facts": header_facts(header, results),
        "command": command_line(header),
        "header": {name: value for name, value in header.items() if name not in ("command", "verified")},
        "check": wording.consistency(header.get("verified")),
        "groups": groups,
        "columns": wording.headline_keys(groups),
        "figures": [{key: figure for key, (_, figure) in wording.measures_of(group).items()} for group in groups],
        "tables": _task_tables(groups),
        "warnings": wording.warnings_of(results),
        "pairs": _differences(results, at_budgets=False),
        "budget_pairs": _differences(results, at_budgets=True),
        "budgets": budget_rows(results),
        "wide_first": spans_the_page(results),
        "plots": draw_plots(results, samples),
        "ungradable": [
            (s, sample_link(s), _cut(s.answer or "-"), _cut(s.reference)) for s in ungradable[:MOST_UNGRADABLE]
        ],
        "num_ungradable": len(ungradable),
        "reasons": count_reasons(samples),
        "modes": MODES,
        "is_dict": lambda value: isinstance(value, Mapping),
        "is_list": lambda value: isinstance(value, (list, tuple)),
    }


def _render(values: Mapping[str, Any], payload: Payload, max_bytes: int) -> str:
    from markupsafe import Markup

    folder = resources.files(__package__)
    script = page_text("viewer.js") + "\n" + "\n".join(_read(name) for name in _SCRIPTS)
    style = page_text("viewer.css") + "\n" + _read("report.css")
    plots = [(plot, Markup(plot.svg)) for plot in values["plots"]]
    about = {"levels": payload.levels, "modes": MODES, "has_index": bool(payload.index)}
    return render_page(
        folder.joinpath("report.html").read_text(encoding="utf-8"),
        scripts=[script],
        styles=[style],
        **{**values, "plots": plots},
        payload=describe_payload(payload, max_bytes),
        about=Markup(embed_json(about)),
        index=Markup(embed_json(payload.index)),
        records=Markup(embed_json(payload.records)),
    )


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def report_title(header: Mapping[str, Any]) -> str:
    """The model's name, else the end of the checkpoint's path: three parts of it where the last is only `export`."""
    checkpoint = header.get("checkpoint")
    path = checkpoint.get("path") if isinstance(checkpoint, Mapping) else checkpoint
    parts = PurePath(str(path)).parts if path else ()
    shown = "/".join(parts[-3:] if parts[-1:] == ("export",) else parts[-1:]).lstrip("/")
    return str(header.get("model") or shown or "a checkpoint")


def command_line(header: Mapping[str, Any]) -> str:
    """The command as one line that a shell takes; empty where the header has none."""
    command = header.get("command") or ""
    return command if isinstance(command, str) else shlex.join(str(part) for part in command)


def header_facts(header: Mapping[str, Any], results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A line of what was run, for the top of the page: only what the header has, and only plain values."""
    groups = results.get("groups") or []
    facts = [
        ("date", _date(header.get("started") or header.get("date"))),
        ("tasks", ", ".join(dict.fromkeys(str(group.get("task")) for group in groups))),
        ("modes", ", ".join(sorted({str(group.get("mode")) for group in groups}, key=mode_place))),
        ("samples", f"{sum(group.get('num_samples') or 0 for group in groups):,}"),
        *(
            (name.replace("_", " "), header.get(name))
            for name in ("dtype", "scheme", "hardware", "ranks", "batch_size")
        ),
    ]
    return [(name, str(value)) for name, value in facts if value and not isinstance(value, (Mapping, list, tuple))]


def _date(given: Any) -> str:
    """A time as people write it, in the zone in which it was given; what is no time stays as it is."""
    try:
        return datetime.fromisoformat(str(given)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(given or "")


def _group_place(group: Mapping[str, Any]) -> tuple[str, tuple[int, str]]:
    return str(group.get("task")), mode_place(str(group.get("mode")))


def _task_tables(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every task all measures, a line each, and a column a mode."""
    tables = []
    for task in dict.fromkeys(group.get("task") for group in groups):
        own = [group for group in groups if group.get("task") == task]
        figures = [{key: figure for key, (_, figure) in wording.measures_of(group).items()} for group in own]
        lines = [(row, [of_mode.get(row.key) for of_mode in figures]) for row in wording.all_rows(own)]
        tables.append({"task": task, "modes": [group.get("mode") for group in own], "lines": lines})
    return tables


def _differences(results: Mapping[str, Any], at_budgets: bool) -> list[tuple[str, wording.Figure, str, str]]:
    pairs = results.get("paired") or []
    return [wording.describe_difference(pair) for pair in pairs if (pair.get("budget") is not None) == at_budgets]


def budget_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for every point of every curve, with its figures."""
    rows = []
    for curve in results.get("budgets") or []:
        for point in curve.get("points") or []:
            figures = {
                "budget": wording.as_figure(point.get("budget"), "count"),
                "accuracy": wording.as_figure(point.get("accuracy"), "share"),
                "critical_path": wording.as_figure(point.get("critical_path"), "count"),
                "total_tokens": wording.as_figure(point.get("total_tokens"), "count"),
                "share_cut": wording.as_figure(point.get("share_cut"), "share"),
                "parallelism": wording.as_figure(point.get("parallelism"), "ratio"),
            }
            rows.append(
                {"task": curve.get("task"), "mode": curve.get("mode"), "policy": curve.get("policy"), **figures}
            )
    return rows


def _cut(text: str) -> str:
    return text if len(text) <= _CUT_ANSWER else text[: _CUT_ANSWER - 1] + "…"
