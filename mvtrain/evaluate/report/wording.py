"""How the report names, explains and formats what was measured; both of its forms use these words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

FEW_PROBLEMS = 100
"""Below this many problems a 95% interval of an accuracy is up to 20 points wide or more: the report warns."""

NOTHING = "-"


@dataclass(frozen=True)
class Measure:
    """How a measure is shown. `form` is share, ratio, count, seconds, milliseconds, rate or number."""

    name: str
    label: str
    form: str
    meaning: str


MEASURES = (
    Measure("avg", "Accuracy", "share", "mean over the problems of the share of right samples (avg@n)"),
    Measure("pass", "pass@{k}", "share", "at least one of k samples is right, unbiased estimate"),
    Measure("maj", "maj@{k}", "share", "the most frequent answer of k samples is right"),
    Measure("ungradable", "Ungradable", "share", "equality with the reference could not be told"),
    Measure("well_formed", "Well formed", "share", "ended by itself, and the text is a trace without problems"),
    Measure("with_blocks", "With blocks", "share", "at least one block ran in parallel"),
    Measure("truncated", "Truncated", "share", "cut off at a limit of length"),
    Measure("forced_closes", "Forced closes", "share", "the engine had to close a path or a block"),
    Measure("failed", "Failed", "share", "cancelled, or the model's output was not a number"),
    Measure("parallelism", "Parallelism", "ratio", "generated / critical-path tokens, ratio of sums"),
    Measure("parallelism_mean", "Parallelism, mean", "ratio", "mean over samples of the ratio"),
    Measure("parallelism_paper", "Parallelism, prompt included", "ratio", "as the paper's code counts it"),
    Measure("generated_tokens", "Tokens", "count", "generated tokens a sample, the prompt left out"),
    Measure("critical_path_tokens", "Critical path", "count", "tokens on the longest sequential chain, a sample"),
    Measure("seconds_per_sample", "Seconds a sample", "seconds", "from admission into the batch to the last token"),
    Measure("tokens_per_second", "Tokens a second", "rate", "all generated tokens over the wall time of the run"),
    Measure("latency_per_token", "Latency a token", "milliseconds", "seconds of a sample over its generated tokens"),
)
HEADLINE = ("avg", "pass", "maj", "well_formed", "with_blocks", "truncated", "parallelism")
HEADLINE += ("generated_tokens", "critical_path_tokens", "seconds_per_sample")
"""What the summary shows; of pass and maj the largest k."""

_BY_NAME = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True)
class Figure:
    """A number as the report shows it: `text`, and `interval` where it has one, else empty."""

    value: float | None
    low: float | None
    high: float | None
    form: str

    @property
    def text(self) -> str:
        return format_number(self.value, self.form)

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        unit = {"share": "%", "points": " pp", "milliseconds": " ms", "seconds": " s"}.get(self.form, "")
        return f"[{self._bare(self.low)}, {self._bare(self.high)}]{unit}"

    def _bare(self, value: float) -> str:
        return format_number(value, self.form).split(" ")[0].removesuffix("%")

    def __str__(self) -> str:
        return f"{self.text} {self.interval}".strip()


@dataclass(frozen=True)
class MeasureRow:
    """One line of the table of all measures."""

    key: str
    label: str
    meaning: str
    form: str


def as_figure(value: Any, form: str = "number") -> Figure:
    """A number, or a dict of value, low and high; anything else, and what is not finite, is a figure of nothing.

    Where a bootstrap interval has no width, since all problems score the same, Wilson's is taken if it is given.
    """
    if isinstance(value, Mapping):
        low, high = _finite(value.get("low")), _finite(value.get("high"))
        if low == high and value.get("wilson"):
            low, high = map(_finite, value["wilson"])
        return Figure(_finite(value.get("value")), low, high, form)
    return Figure(_finite(value), None, None, form)


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def format_number(value: float | None, form: str) -> str:
    """In the unit and with the digits of its form; a share is given in percent, a difference of shares in points."""
    if value is None:
        return NOTHING
    if form == "share":
        return f"{100 * value:.1f}%"
    if form == "points":
        return f"{100 * value:+.1f} pp"
    if form == "count":
        return f"{value:,.0f}"
    if form == "milliseconds":
        return f"{_three_digits(1000 * value)} ms"
    if form == "seconds":
        return f"{_three_digits(value)} s"
    if form == "ratio":
        return f"{value:.2f}"
    return _three_digits(value)


def _three_digits(value: float) -> str:
    """At least three significant digits, and no exponent for numbers that people read."""
    size = abs(value)
    if size >= 100 or value == 0 or (isinstance(value, int)):
        return f"{value:,.0f}"
    if size < 1e-3:
        return f"{value:.2g}"
    return f"{value:.{2 - math.floor(math.log10(size))}f}"


def measures_of(group: Mapping[str, Any]) -> dict[str, tuple[MeasureRow, Figure]]:
    """Every measure of a group by its key, such as `avg`, `pass@4` or an unknown name, in the order of the page."""
    given = group.get("measures") or {}
    names = [m.name for m in MEASURES if m.name in given] + sorted(set(given) - set(_BY_NAME))
    return {row.key: (row, figure) for name in names for row, figure in _expand(name, given[name])}


def _expand(name: str, value: Any) -> Iterator[tuple[MeasureRow, Figure]]:
    measure = _BY_NAME.get(name) or Measure(name, name, "number", "")
    if not isinstance(value, Mapping) or "value" in value:
        row = MeasureRow(name, measure.label.format(k="k"), measure.meaning, measure.form)
        yield row, as_figure(value, measure.form)
        return
    for k in sorted(value, key=_by_size):
        label = measure.label.format(k=k) if "{k}" in measure.label else f"{measure.label} {k}"
        meaning = measure.meaning.replace("k samples", f"{k} samples")
        yield MeasureRow(f"{name}@{k}", label, meaning, measure.form), as_figure(value[k], measure.form)


def _by_size(k: Any) -> tuple[int, str]:
    return (int(k), "") if str(k).isdigit() else (0, str(k))


def headline_keys(groups: list[Mapping[str, Any]]) -> list[MeasureRow]:
    """The columns of the summary: those of `HEADLINE` that any group has, of pass and maj only the largest k."""
    rows: dict[str, MeasureRow] = {}
    for group in groups:
        rows.update({key: row for key, (row, _) in measures_of(group).items()})
    chosen = []
    for name in HEADLINE:
        family = [row for key, row in rows.items() if key.split("@")[0] == name]
        chosen += sorted(family, key=lambda row: _by_size(row.key.split("@")[-1]))[-1:]
    return chosen


def all_rows(groups: list[Mapping[str, Any]]) -> list[MeasureRow]:
    """The lines of the table of all measures: those that any of the groups has."""
    rows = {key: row for group in groups for key, (row, _) in measures_of(group).items()}
    order = {m.name: place for place, m in enumerate(MEASURES)}
    return sorted(
        rows.values(), key=lambda row: (order.get(row.key.split("@")[0], len(order)), _by_size(row.key.split("@")[-1]))
    )


def warnings_of(results: Mapping[str, Any]) -> list[str]:
    """What a reader must know before comparing numbers: tasks with few problems, and how wide their intervals are."""
    few: dict[str, tuple[int, list[float]]] = {}
    for group in results.get("groups") or []:
        number = group.get("num_problems") or 0
        if number < FEW_PROBLEMS:
            widths = few.setdefault(str(group.get("task")), (number, []))[1]
            figure = as_figure((group.get("measures") or {}).get("avg"))
            if figure.low is not None and figure.high is not None:
                widths.append((figure.high - figure.low) / 2)
    return [_warning(task, number, widths) for task, (number, widths) in few.items()]


def _warning(task: str, number: int, widths: list[float]) -> str:
    text = f"{task}: only {number} problem{'' if number == 1 else 's'}"
    if widths:
        text += f", so an accuracy is known to about ±{100 * max(widths):.0f} points"
    return f"{text}. Compare modes by their paired differences, and make nothing of smaller ones between models."


def describe_difference(pair: Mapping[str, Any]) -> tuple[str, Figure, str, str]:
    """Of a paired difference: what is compared, the difference in points, its p-value, and which side is ahead.

    The last is the name of the mode that is ahead where the interval leaves out zero and p < 0.05, else empty. Where
    all problems differ alike the bootstrap gives no width; that is no certainty, and no interval is shown.
    """
    figure = as_figure(pair.get("difference"), "points")
    if figure.low is not None and figure.low == figure.high:
        figure = replace(figure, low=None, high=None)
    p_value = _finite(pair.get("p_value"))
    cut = "cut answers forced" if pair.get("policy") == "forced" else "cut answers wrong"
    where = "" if pair.get("budget") is None else f", at {pair['budget']:,} tokens ({cut})"
    ahead = ""
    clear = figure.low is None or figure.high is None or figure.low > 0 or figure.high < 0
    if clear and figure.value and p_value is not None and p_value < 0.05:
        ahead = str(pair.get("a") if figure.value > 0 else pair.get("b"))
    p_text = NOTHING if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
    return f"{pair.get('task')}: {pair.get('a')} minus {pair.get('b')}{where}", figure, p_text, ahead


def consistency(verified: Any) -> tuple[str, str]:
    """The state of the engine's check against a full forward pass, "ok", "failed" or "skipped", and a sentence."""
    if not isinstance(verified, Mapping):
        return "skipped", "Consistency check skipped: nothing says that the engine agrees with a full forward pass."
    if verified.get("limited") == "sampled":
        differ = (
            f"log-probabilities of sampled tokens differ by {_plain(verified.get('sampled_difference'))} on average"
        )
    else:
        differ = f"log-probabilities differ by at most {_plain(verified.get('max_difference'))}"
    numbers = f"{differ} in {verified.get('dtype', 'an unknown type')}, limit {_plain(verified.get('limit'))}"
    if verified.get("ok") is True:
        return "ok", f"Consistency check passed: the engine agrees with a full forward pass ({numbers})."
    return "failed", f"Consistency check FAILED: the engine disagrees with a full forward pass ({numbers})."


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)
