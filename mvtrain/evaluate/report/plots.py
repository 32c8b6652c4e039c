"""The report's plots, drawn with matplotlib and returned as SVG elements for the page."""

from __future__ import annotations

import io
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.report.payload import mode_place
from mvtrain.evaluate.report.svg import GRID, INK, MODE_COLOURS, OTHER_COLOUR, SOFT, clean_svg
from mvtrain.evaluate.report.wording import as_figure

MOST_POINTS = 3000
"""Above this many samples a scatter plot shows cells, darker the more samples are in them."""
NEARLY_ONE = 1.005
"""A parallelism below it is shown as 1.00."""
_CELLS = 48
_THIRD, _HALF, _WHOLE = 4.4, 6.0, 12.4  # of the page's width, in inches
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvtrain",
    "text.parse_math": False,
    "font.size": 10.0,
    "font.family": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.0,
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Plot:
    """`svg` is empty where there is nothing to draw, and `missing` then says why."""

    name: str
    title: str
    caption: str
    svg: str = ""
    missing: str = ""


def draw_plots(results: Mapping[str, Any], samples: Sequence[Sample]) -> list[Plot]:
    """All plots, in the order of the page. Samples that were forced at a budget are only in the first one.

    Raises ImportError that names the extra where matplotlib is missing.
    """
    main_run = [s for s in samples if s.budget is None and s.num_generated > 0]
    width = _THIRD if spans_the_page(results) else _HALF
    others = [draw(main_run, width) for draw in (_latency, _parallelism, _tokens)]
    return [_accuracy_by_budget(results), *others]


def spans_the_page(results: Mapping[str, Any]) -> bool:
    """Whether the plot of budgets has a panel for each of several tasks, and the others stand in a row below it."""
    return len({curve.get("task") for curve in results.get("budgets") or [] if curve.get("points")}) > 1


def _figure(draw: Callable[[Any], None], name: str, title: str, caption: str, width: float) -> Plot:
    """Draws with the settings above, whatever the user's own are, and without a window system."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the report's plots are drawn with matplotlib: pip install 'mvtrain[eval]'") from None
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # the browser has the fonts, not matplotlib
        figure = Figure(figsize=(width, 3.5), layout="constrained", facecolor="none")
        draw(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="none")
    return Plot(name, title, caption, clean_svg(file.getvalue(), f"plot-{name}", title, caption))


def _accuracy_by_budget(results: Mapping[str, Any]) -> Plot:
    name, title = "budget", "Accuracy by budget of the critical path"
    caption = (
        "Share of right answers against the critical path that was used, which takes the time, a mark for each budget:"
        " where longer answers are wrong, and where they are forced at the budget. Bands: 95% intervals."
    )
    curves = [curve for curve in results.get("budgets") or [] if curve.get("points")]
    if not curves:
        return Plot(name, title, caption, missing="The run measured no budgets.")
    tasks = list(dict.fromkeys(str(curve.get("task")) for curve in curves))
    policies = list(dict.fromkeys(str(curve.get("policy")) for curve in curves))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for curve in sorted(curves, key=lambda curve: mode_place(str(curve.get("mode")))):
                if str(curve.get("task")) == task:
                    dashes = ("-", "--", ":")[policies.index(str(curve.get("policy"))) % 3]
                    label = str(curve.get("mode")) + (f", {curve.get('policy')}" if len(policies) > 1 else "")
                    _draw_curve(axes, curve, dashes, label)
            axes.set_title(task)
            axes.set_xlabel("critical-path tokens, mean of what was used")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        panels[0].set_ylabel("right answers (%)")
        panels[0].set_ylim(bottom=0)
        panels[0].legend(loc="best")

    return _figure(draw, name, title, caption, _HALF if len(tasks) == 1 else _WHOLE)


def _draw_curve(axes: Any, curve: Mapping[str, Any], dashes: str, label: str) -> None:
    by_budget = sorted(curve["points"], key=lambda point: point.get("budget") or 0)
    points = [
        (p["critical_path"], as_figure(p.get("accuracy"))) for p in by_budget if p.get("critical_path") is not None
    ]
    points = [(used, figure) for used, figure in points if figure.value is not None]
    colour = _colour(str(curve.get("mode")))
    axes.plot([b for b, _ in points], [100 * f.value for _, f in points], dashes, marker="o", color=colour, label=label)
    banded = [(b, f) for b, f in points if f.low is not None and f.high is not None]
    if banded:
        low, high = ([100 * getattr(f, end) for _, f in banded] for end in ("low", "high"))
        axes.fill_between([b for b, _ in banded], low, high, color=colour, alpha=0.1, linewidth=0)


def _latency(samples: list[Sample], width: float) -> Plot:
    name, title = "latency", "Latency a token against parallelism"
    caption = "Milliseconds of a sample's time in the batch over its generated tokens. Line: medians of equal groups."
    timed = [s for s in samples if s.seconds > 0]
    if not timed:
        return Plot(name, title, caption, missing="No sample has a time.")
    if max(s.parallelism for s in timed) < NEARLY_ONE:
        return Plot(name, title, caption, missing="No sample ran anything in parallel: parallelism is 1.00 throughout.")
    points = {
        mode: ([s.parallelism for s in group], [1000 * s.seconds / s.num_generated for s in group])
        for mode, group in _by_mode(timed).items()
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        _scatter(axes, points)
        x, y = _binned_medians(points)
        if len(x) > 1:
            axes.plot(x, y, "-", marker="D", markersize=4, color=INK, label="median", zorder=4)
        axes.set(xlabel="parallelism", ylabel="ms a token")
        axes.set_ylim(bottom=0, top=1.1 * _high_end([value for _, values in points.values() for value in values]))
        axes.legend(loc="best")

    return _figure(draw, name, title, caption, width)


def _high_end(values: list[float]) -> float:
    """The largest value, but no further than three times the 98th percentile: one slow sample must not hide others."""
    ordered = sorted(values)
    return min(ordered[-1], 3 * ordered[int(0.98 * (len(ordered) - 1))])


def _binned_medians(points: Mapping[str, tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Medians of x and y: of all points that ran nothing in parallel, and of the others in groups of rising x.

    The groups are up to ten, equally large, and of eight points at least.
    """
    pairs = sorted((x, y) for xs, ys in points.values() for x, y in zip(xs, ys, strict=True))
    alone = [pair for pair in pairs if pair[0] < NEARLY_ONE]
    others = pairs[len(alone) :]
    groups = min(10, len(others) // 8)
    bounds = [len(others) * i // groups for i in range(groups + 1)] if groups else []
    cut = [alone] * bool(alone) + [others[a:b] for a, b in pairwise(bounds)]
    return [statistics.median(x for x, _ in g) for g in cut], [statistics.median(y for _, y in g) for g in cut]


def _parallelism(samples: list[Sample], width: float) -> Plot:
    name, title = "parallelism", "Parallelism of the samples"
    caption = "Generated tokens over tokens on the critical path, in the modes that run blocks in parallel."
    values = {mode: [s.parallelism for s in group] for mode, group in _by_mode(samples).items()}
    values = {mode: numbers for mode, numbers in values.items() if max(numbers) >= NEARLY_ONE}
    if not values:
        return Plot(name, title, caption, missing="No sample ran anything in parallel: parallelism is 1.00 throughout.")

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        top = max(max(numbers) for numbers in values.values())
        edges = [1 + (top - 1) * i / 30 for i in range(31)]
        edges[0], edges[-1] = min(1.0, *(min(numbers) for numbers in values.values())), top + 1e-9
        for mode, numbers in values.items():
            axes.hist(numbers, bins=edges, color=_colour(mode), alpha=0.55, label=f"{mode} ({len(numbers):,})")
        axes.set(xlabel="parallelism", ylabel="samples")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="best")

    return _figure(draw, name, title, caption, width)


def _tokens(samples: list[Sample], width: float) -> Plot:
    name, title = "tokens", "Generated against critical-path tokens"
    caption = "On the diagonal everything is sequential; the further above it, the more ran side by side."
    if not samples:
        return Plot(name, title, caption, missing="The run has no samples.")
    points = {
        mode: ([s.critical_path for s in group], [s.num_generated for s in group])
        for mode, group in _by_mode([s for s in samples if s.critical_path > 0]).items()
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        everything = [value for pair in points.values() for values in pair for value in values]
        low, high = min(everything), max(everything)
        if high > 20 * low:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.plot([low, high], [low, high], "--", color=SOFT, linewidth=1, label="nothing in parallel", zorder=3)
        _scatter(axes, points)
        axes.set(xlabel="critical-path tokens", ylabel="generated tokens")
        for axis in (axes.xaxis, axes.yaxis):
            _thousands(axis)
        axes.legend(loc="best")

    return _figure(draw, name, title, caption, width)


def _by_mode(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    modes = sorted({s.mode for s in samples}, key=mode_place)
    return {mode: [s for s in samples if s.mode == mode] for mode in modes}


def _colour(mode: str) -> str:
    return MODE_COLOURS.get(mode, OTHER_COLOUR)


def _scatter(axes: Any, points: Mapping[str, tuple[list[float], list[float]]]) -> None:
    """One point a sample; with very many of them, cells."""
    many = sum(len(x) for x, _ in points.values()) > MOST_POINTS
    for x, y in reversed(points.values()):
        if many:
            axes.plot(x, y, " ")  # for the limits of the axes
    for mode, (x, y) in reversed(points.items()):
        if many:
            _cells(axes, x, y, _colour(mode))
        else:
            axes.plot(x, y, "o", color=_colour(mode), markersize=3.4, alpha=0.5, markeredgewidth=0)
    for mode, (x, _) in points.items():
        axes.plot([], [], "s" if many else "o", color=_colour(mode), markersize=6, label=f"{mode} ({len(x):,})")


def _cells(axes: Any, x: list[float], y: list[float], colour: str) -> None:
    """Counts on a grid of cells of the axes, as squares of five strengths."""
    import numpy as np
    from matplotlib.collections import PolyCollection

    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    spacing_x, spacing_y = (np.geomspace if axes.get_xscale() == "log" else np.linspace for _ in "xy")
    x_edges, y_edges = spacing_x(x_low, x_high, _CELLS + 1), spacing_y(y_low, y_high, _CELLS + 1)
    counts = np.histogram2d(x, y, bins=(x_edges, y_edges))[0]
    strengths = np.ceil(5 * np.log1p(counts) / np.log1p(counts.max()))
    for strength in range(1, 6):
        corners = [
            [(x_edges[i + a], y_edges[j + b]) for a, b in ((0, 0), (1, 0), (1, 1), (0, 1))]
            for i, j in np.argwhere(strengths == strength)
        ]
        axes.add_collection(PolyCollection(corners, facecolor=colour, alpha=0.16 * strength, linewidth=0))


def _thousands(axis: Any) -> None:
    """Whole numbers on an axis of tokens, without powers of ten."""
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if axis.get_scale() == "log":
        from matplotlib.ticker import LogLocator, NullFormatter

        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_minor_formatter(NullFormatter())
