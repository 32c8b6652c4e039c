"""Results as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvtrain.evaluate.report.wording import HEADLINE, MEASURES, as_figure, describe_difference, format_number


def describe_results(results: Mapping[str, Any]) -> str:
    """A line per measure for every task and mode, then budgets, then paired differences."""
    lines: list[str] = []
    for group in results["groups"]:
        lines.append(
            f"{group['task']}, {group['mode']}: {group['num_problems']} problems, {group['num_samples']} samples"
        )
        for measure in (m for m in MEASURES if m.name in HEADLINE or m.name == "ungradable"):
            for label, value in _values(measure.label, group["measures"].get(measure.name)):
                lines.append(f"  {label:<16} {as_figure(value, measure.form)}")
    for curve in results["budgets"]:
        lines.append(f"{curve['task']}, {curve['mode']}: accuracy by critical path, cut answers {curve['policy']}")
        for point in curve["points"]:
            accuracy, used = as_figure(point["accuracy"], "share"), format_number(point["critical_path"], "count")
            lines.append(f"  {point['budget']:>8,}       {accuracy}, {used} used, {point['share_cut']:.0%} cut")
    for pair in results["paired"]:
        if pair.get("budget") is None:
            what, figure, p_value, _ = describe_difference(pair)
            lines.append(f"{what}: {figure}, p = {p_value}")
    return "\n".join(lines)


def _values(label: str, value: Any) -> list[tuple[str, Any]]:
    """A measure, or one for every k."""
    if value is None:
        return []
    if isinstance(value, Mapping) and "value" not in value:
        return [(label.format(k=k), inner) for k, inner in value.items()]
    return [(label, value)]
