"""The report's files: what stands in them, that they stay small, and that no text becomes markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mvtrain.evaluate.report import write_report
from mvtrain.evaluate.report.compact import compact_tokens, rounded_tokens
from mvtrain.evaluate.report.html import render_html
from mvtrain.evaluate.report.markdown import render_markdown
from mvtrain.evaluate.report.payload import build_payload, order_of_keeping
from mvtrain.evaluate.report.plots import MOST_POINTS, _binned_medians, draw_plots
from mvtrain.evaluate.report.wording import as_figure
from tests.report_samples import HEADER, HOSTILE, hostile_run, make_run

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


class Elements(HTMLParser):
    """Every element with its attributes, and the numbers in <data>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))

    def numbers(self) -> list[float]:
        return [float(attributes["value"]) for tag, attributes in self.found if tag == "data"]


def test_the_numbers_on_the_page_are_those_of_the_results():
    results, samples = make_run(6, 80)
    numbers = Elements(render_html(HEADER, results, samples, 5_000_000)).numbers()
    for group in results["groups"]:
        for name in ("avg", "parallelism", "well_formed"):
            assert group["measures"][name]["value"] in numbers
    for pair in results["paired"]:
        assert any(abs(pair["difference"]["value"] - number) < 1e-12 for number in numbers)
    points = [point["accuracy"]["value"] for curve in results["budgets"] for point in curve["points"]]
    assert points and set(points) <= set(numbers)


def test_a_page_asks_for_nothing_and_runs_only_its_own_script():
    results, samples = make_run(3, 40)
    page = render_html(HEADER, results, samples, 5_000_000)
    elements = Elements(page).found
    (policy,) = [a["content"] for tag, a in elements if tag == "meta" and "http-equiv" in a]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    for tag, attributes in elements:
        assert not attributes.get("src") and not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#"), attributes
    assert not re.search(r"https?://(?!www\.w3\.org/)", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_hostile_text_is_no_markup():
    header, results, samples = hostile_run()
    page = render_html(header, results, samples, 5_000_000)
    tags = [tag for tag, attributes in Elements(page).found]
    assert tags.count("script") == 4 and "img" not in tags
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
    markdown = render_markdown(header, results, samples)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows if "---" not in line}
    assert len(rows) > 4 and len(widths) <= 3, "no cell breaks its table"
    outside = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert "](javascript" not in outside and "<script>" not in outside


def test_markdown_has_the_summary():
    results, samples = make_run(6, 80)
    text = render_markdown(HEADER, results, samples)
    accuracy = results["groups"][0]["measures"]["avg"]["value"]
    assert f"{100 * accuracy:.1f}%" in text and "p-value" not in text and "| sums | parallel | 6 | 12 |" in text
    assert HEADER["command"] in text and "Consistency check passed" in text
    assert "sums: only 6 problems" in text


@pytest.mark.parametrize("max_bytes", [420_000, 600_000, 2_000_000])
def test_a_page_never_exceeds_its_limit_and_says_what_is_missing(max_bytes):
    results, samples = make_run(100, 400)
    page = render_html(HEADER, results, samples, max_bytes)
    assert len(page.encode()) <= max_bytes
    shown = int(re.search(r"([\d,]+) of 400 samples can be looked at token by token", page)[1].replace(",", ""))
    assert (shown == 400) is (max_bytes == 2_000_000)
    assert ("stay" in page[page.index('id="payload-note"') :][:600]) is (shown < 400)


def test_too_few_bytes_is_a_message():
    results, samples = make_run(2, 40)
    with pytest.raises(ValueError, match=r"max_bytes is 1,000, but the report takes"):
        render_html(HEADER, results, samples, 1000)


def test_first_samples_of_problems_stay_longest():
    _, samples = make_run(20, 40)
    first_half = order_of_keeping(samples)[: len(samples) // 2]
    assert {samples[i].id for i in first_half} == {s.id for s in samples}
    payload = build_payload(samples, 60_000)
    assert 0 < payload.levels.count("2") < len(samples)


def test_compact_tokens_are_smaller_and_lose_only_digits():
    _, samples = make_run(1, 800)
    for sample in samples:
        compact = compact_tokens(sample.tokens)
        assert len(json.dumps(compact)) < len(json.dumps(sample.tokens)) / 3
        rounded = rounded_tokens(sample.tokens)
        for exact, kept in zip(sample.tokens["logprobs"], rounded["logprobs"], strict=True):
            assert (exact is None) is (kept is None) and abs((exact or 0) - (kept or 0)) <= 5.01e-4


def test_both_files_are_written_whole(tmp_path):
    results, samples = make_run(2, 40)
    html, markdown = write_report(tmp_path, HEADER, results, samples)
    assert sorted(file.name for file in tmp_path.iterdir()) == [html.name, markdown.name]


def test_nothing_measured_is_a_page_too():
    page = render_html({}, {"groups": [], "budgets": [], "paired": []}, [], 5_000_000)
    assert "The run measured nothing" in page and "Consistency check skipped" in page
    failed = render_html({"verified": {"ok": False}}, {"groups": [], "budgets": [], "paired": []}, [], 5_000_000)
    assert "check-failed" in failed and "FAILED" in failed


def test_an_interval_without_width_gives_way_to_wilsons():
    estimate = {"value": 1.0, "low": 1.0, "high": 1.0, "wilson": (0.887, 1.0)}
    assert str(as_figure(estimate, "share")) == "100.0% [88.7, 100.0]%"
    assert str(as_figure({**estimate, "low": 0.9}, "share")) == "100.0% [90.0, 100.0]%"


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.538, "share", "53.8%"), (-0.0251, "points", "-2.5 pp"), (12345.6, "count", "12,346"),
        (1.184, "ratio", "1.18"), (0.01234, "milliseconds", "12.3 ms"), (0.75, "seconds", "0.750 s"),
        (1234.4, "rate", "1,234"), (None, "share", "-"), (float("nan"), "share", "-"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(value, form, text):
    assert as_figure(value, form).text == text


def test_unknown_measures_are_shown_and_missing_ones_are_a_dash():
    groups = [
        {"task": "t", "mode": "parallel", "num_problems": 200, "num_samples": 200, "measures": {"new one": 0.25}},
        {"task": "t", "mode": "sequential", "num_problems": 200, "num_samples": 200, "measures": {"avg": 0.5}},
    ]
    page = render_html({}, {"groups": groups}, [], 5_000_000)
    assert "new one" in page and {0.25, 0.5} <= set(Elements(page).numbers())
    assert page.count('<span class="nothing">-</span>') >= 2


def test_plots_stay_small_with_very_many_samples():
    _, samples = make_run(4, 40)
    varied = [
        replace(samples[0], critical_path=100 + k, num_generated=100 + k + k % 97) for k in range(MOST_POINTS + 1)
    ]
    drawn = {plot.name: plot for plot in draw_plots({}, varied)}
    assert drawn["budget"].svg == "" and "no budgets" in drawn["budget"].missing
    for name in ("latency", "tokens"):
        points = {plot.name: plot.svg for plot in draw_plots({}, varied[1:])}[name]
        assert len(drawn[name].svg) < len(points) and points.count("<use") > MOST_POINTS
    assert "style=" not in "".join(plot.svg for plot in drawn.values()), "the page's policy allows no style attributes"


def test_the_curve_of_budgets_lies_where_its_figures_say():
    """Used tokens to the right and right answers upwards, in proportion: the page turns y around."""
    used, right = (90, 190, 340), (0.2, 0.5, 0.9)
    points = [
        {"budget": 100 * k, "critical_path": x, "accuracy": {"value": y, "low": y - 0.05, "high": y + 0.05}}
        for k, (x, y) in enumerate(zip(used, right, strict=True), 1)
    ]
    curve = {"task": "sums", "mode": "parallel", "policy": "wrong", "points": points}
    svg = draw_plots({"budgets": [curve]}, make_run(2, 40)[1])[0].svg
    drawn = [re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path in re.findall(r'<path d="([^"]*)"', svg)]
    lines = [[(float(x), float(y)) for x, y in line] for line in drawn if len(line) == 3]
    assert sum(is_the_curve(line, used, right) for line in lines) == 1
    assert not any(is_the_curve(line, used, (0.2, 0.6, 0.9)) for line in lines), "another curve is not found"


def is_the_curve(line: list[tuple[float, float]], used: tuple, right: tuple) -> bool:
    (x0, y0), (x1, y1), (x2, y2) = line
    if x2 <= x0 or y2 >= y0:
        return False
    across = (x1 - x0) / (x2 - x0) - (used[1] - used[0]) / (used[2] - used[0])
    up = (y1 - y0) / (y2 - y0) - (right[1] - right[0]) / (right[2] - right[0])
    return abs(across) < 1e-3 and abs(up) < 1e-3


def test_medians_of_latency_by_hand():
    ones, others = [1.0] * 5, [1.1] * 8 + [2.0] * 8
    x, y = _binned_medians(
        {"parallel": (others, [8.0] * 8 + [4.0] * 8), "sequential": (ones, [9.0, 9.0, 10.0, 11.0, 11.0])}
    )
    assert (x, y) == ([1.0, 1.1, 2.0], [10.0, 8.0, 4.0])


def test_hostile_is_hostile():
    """The attacks above would work on a page without escaping: the parser sees their elements."""
    assert {"script", "img"} <= {tag for tag, _ in Elements(f"<p>{HOSTILE}</p>").found}
