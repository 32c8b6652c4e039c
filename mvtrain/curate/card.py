"""The data card: where the traces come from, how they were made, and what they are like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvtrain.curate.outputs import TRACES, Summary


def card(identity: Mapping[str, Any], summary: Summary, num_unfinished: int | None) -> str:
    """README.md of the folder; its head makes `datasets.load_dataset(FOLDER)` read the traces.

    Args:
        identity: what decides the traces, as `run.json` has it.
        num_unfinished: rows of the input that are not finished; None where that is not known.
    """
    num = summary.num_accepted + summary.num_rejected
    share = f" ({summary.num_accepted / num:.0%})" if num else ""
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {TRACES}",
        "tags:",
        "- reasoning",
        "- parallel",
        "---",
        "",
        "# Traces with parallel reasoning",
        "",
        f"{summary.num_accepted} of {num} sequential chains{share} became traces. Made by `mvtrain curate`. "
        f"The answers of {summary.num_verified} were found equal to a reference; the others have none to compare with.",
    ]
    if summary.num_repeated:
        lines += ["", f"**Repeated**: {summary.num_repeated} of them have the question and the chain of another one."]
    if num_unfinished != 0:
        left = f"{num_unfinished} rows" if num_unfinished else "Some rows"
        lines += ["", f"**Not complete**: {left} of the input are not finished."]
    lines += ["", "| made from | |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_cell(value)} |" for name, value in identity.items()]
    lines += ["", *_rejections(summary), *_figures(summary)]
    return "\n".join(lines) + "\n"


def _rejections(summary: Summary) -> list[str]:
    if not summary.rejections:
        return []
    rows = [f"| {r['stage']} | {r['kind']} | {r['records']} |" for r in summary.as_dict()["rejections"]]
    return ["## Rejected", "", "| stage | reason | records |", "|---|---|---|", *rows, ""]


def _figures(summary: Summary) -> list[str]:
    """What a model would learn from the traces: how much stands in parallel."""
    if not summary.num_accepted:
        return []
    statistics = summary.statistics
    lines = ["## What is in them", "", "| | mean | least | most |", "|---|---|---|---|"]
    for name, value in statistics.items():
        if isinstance(value, Mapping):
            lines.append(
                f"| {name.replace('_', ' ')} | {value['mean']:.2f} | {value['min']:.2f} | {value['max']:.2f} |"
            )
    whole, path = (statistics[name]["sum"] for name in ("tokens", "critical_path"))
    away = summary.as_dict()["distance"]
    return [
        *lines,
        "",
        f"Tokens are {statistics['unit']}. All tokens over all critical paths: {whole / max(1, path):.2f}. "
        f"Edit distance from the chains: median {away['median']:.1%}, at most {away['max']:.1%}.",
    ]


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
