"""The report in a real browser: it sorts, searches, filters, opens samples, and asks the network for nothing."""

from __future__ import annotations

import time

import pytest

from mvtrain.evaluate.report import write_report
from mvtrain.evaluate.report.compact import compact_tokens, rounded_tokens
from tests.browser import chromium, visit
from tests.report_samples import HEADER, hostile_run, make_run

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def run():
    return make_run(60, 200)


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("report"), HEADER, *run)[0]


@pytest.fixture
def opened(browser, report):
    seen = visit(browser, report)
    seen.page.wait_for_selector(READY)
    yield seen
    seen.page.close()
    seen.check_quiet()


def ids(page) -> list[str]:
    return page.locator("#problem-table .expand").all_inner_texts()


def test_columns_sort_both_ways(opened, run):
    page = opened.page
    page.click("[data-sort=tokens]")
    page.click("[data-sort=critical_path]")
    assert page.get_attribute("th:has([data-sort=critical_path])", "aria-sort") == "ascending"
    first = page.locator("#problem-table tbody .line:first-child td:nth-child(6)").all_inner_texts()
    values = [int(text.replace(",", "")) for text in first]
    assert values == sorted(values) and len(values) == 50
    page.click("[data-sort=problem]")
    assert ids(page) == [f"p{k:04d}" for k in range(50)]
    page.click("[data-sort=problem]")
    assert ids(page) == [f"p{k:04d}" for k in range(59, 9, -1)]
    page.click("#pager-top >> text=Next")
    assert ids(page) == [f"p{k:04d}" for k in range(9, -1, -1)]


def test_accuracy_sorts_by_what_it_is(opened, run):
    _, samples = run
    page = opened.page
    page.select_option("#filter-mode", "parallel")
    page.click("[data-sort=accuracy]")
    right = {}
    for sample in samples:
        if sample.mode == "parallel":
            right[sample.id] = right.get(sample.id, 0) + (sample.correct is True)
    shown = [right[id] for id in ids(page)]
    assert shown == sorted(shown) == sorted(right.values())[:50]


def test_search_and_filters_find_exactly_what_they_should(opened, run):
    _, samples = run
    page = opened.page
    page.fill("#search", "what p0041")
    assert ids(page) == ["p0041"] and "1 problem of 60, 4 samples" in page.inner_text("#status")
    page.fill("#search", "no such thing")
    assert ids(page) == [] and "0 problems" in page.inner_text("#status")
    page.click("#clear")
    page.select_option("#filter-answer", "wrong")
    page.select_option("#filter-mode", "parallel")
    wrong = {s.id for s in samples if s.mode == "parallel" and s.correct is False}
    assert set(ids(page)) == wrong and len(wrong) > 3
    page.select_option("#filter-answer", "one")
    assert "answer=one" in page.url and "mode=parallel" in page.url


def test_a_sample_opens_in_the_viewer_and_has_an_address(opened, browser, report):
    page = opened.page
    page.click("#problem-table .expand >> nth=3")
    links = page.locator(".samples a")
    assert links.count() == 4
    links.nth(0).click()
    page.wait_for_selector("#sample .mv-viewer")
    text = page.inner_text("#sample")
    assert "sums / p0003 / parallel / sample 0" in text and "1 of" not in page.inner_text("#sample-title")
    page.click("#sample .mv-token >> nth=40")
    assert "position" in page.inner_text("#sample .mv-panel")
    address = page.url
    page.click("#sample-next")
    page.wait_for_function("document.querySelector('#sample-title').textContent.includes('sample 1')")
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#sample').open")
    again = visit(browser, report, "#" + address.partition("#")[2])
    again.page.wait_for_selector("#sample .mv-viewer")
    assert "sums / p0003 / parallel / sample 0" in again.page.inner_text("#sample-title")
    again.check_quiet()


def test_blocks_fold_in_the_viewer(opened):
    page = opened.page
    page.click("#problem-table .line >> nth=0")
    page.click(".samples a >> nth=0")
    page.wait_for_selector("#sample .mv-fold")
    bars = page.locator("#sample .mv-bar").count()
    page.click("#sample >> text=Fold all")
    assert page.locator("#sample .mv-bar").count() < bars
    assert page.locator("#sample .mv-bar-folded").count() == 1
    page.click("#sample >> text=Unfold all")
    assert page.locator("#sample .mv-bar").count() == bars


def test_token_details_come_back_from_their_small_form(opened, run):
    _, samples = run
    for sample in samples[:4]:
        back = opened.page.evaluate("compact => mvExpand.tokens(compact)", compact_tokens(sample.tokens))
        assert back == rounded_tokens(sample.tokens)


def test_the_keyboard_is_enough(opened):
    page = opened.page
    page.focus("#search")
    page.keyboard.type("p0007")
    page.focus("#problem-table .expand")
    page.keyboard.press("Enter")
    page.focus(".samples a")
    page.keyboard.press("Enter")
    page.wait_for_selector("#sample .mv-viewer")
    assert page.evaluate("document.activeElement.closest('#sample') !== null")


def test_hostile_text_stays_text(browser, tmp_path):
    html, _ = write_report(tmp_path, *hostile_run())
    seen = visit(browser, html)
    page = seen.page
    page.wait_for_selector(READY)
    page.click("#problem-table .expand >> nth=0")
    page.click(".samples a >> nth=0")
    page.wait_for_selector("#sample .mv-viewer")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 4
    assert "<script>alert(1)</script>" in page.inner_text("#sample")
    seen.check_quiet()


def test_an_ungradable_answer_leads_to_its_sample_whatever_its_id(browser, tmp_path):
    header, results, samples = hostile_run()
    html, _ = write_report(tmp_path, header, results, samples)
    seen = visit(browser, html)
    seen.page.wait_for_selector(READY)
    links = seen.page.locator("#ungradable-table a")
    assert links.count() == 2
    for k in range(2):
        name = links.nth(k).inner_text()
        links.nth(k).click()
        seen.page.wait_for_selector("#sample[open] .mv-viewer")
        assert seen.page.inner_text("#sample-title").split(" / ")[1] == name.split(" / ")[1]
        seen.page.click("#sample-close")
        seen.page.wait_for_function("!document.querySelector('#sample').open")
    seen.check_quiet()


def test_an_open_row_lists_what_the_filters_are_after(opened, run):
    _, samples = run
    page = opened.page
    id = next(s.id for s in samples if s.correct is False)
    page.fill("#search", id)
    page.select_option("#filter-answer", "wrong")
    page.click("#problem-table .expand")
    rows = [row.inner_text().split("\t") for row in page.locator(".samples tbody tr").all()]
    wrong = [s for s in samples if s.id == id and s.correct is False]
    assert [(r[0], r[2], r[3]) for r in rows] == [(f"{s.mode} {s.sample}", s.answer, s.reason) for s in wrong]
    assert [float(r[4]) for r in rows] == [round(s.parallelism, 2) for s in wrong]
    assert [int(r[5].replace(",", "")) for r in rows] == [s.num_generated for s in wrong]


def test_two_thousand_samples_open_quickly_and_stay_small(browser, tmp_path):
    """Under 3 s on a quiet machine; the limit here leaves room for a busy one."""
    html, _ = write_report(tmp_path, HEADER, *make_run(500, 800))
    assert html.stat().st_size < 30_000_000
    start = time.monotonic()
    seen = visit(browser, html)
    seen.page.wait_for_selector(READY)
    seconds = time.monotonic() - start
    assert seconds < 10
    assert "500 problems of 500, 2,000 samples" in seen.page.inner_text("#status")
    print(f"{html.stat().st_size / 1e6:.1f} MB, {seconds:.2f} s")
    seen.check_quiet()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(browser, report, scheme):
    seen = visit(browser, report, color_scheme=scheme)
    seen.page.wait_for_selector(READY)
    colours = seen.page.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    light = [sum(int(part) for part in colour[4:-1].split(",")[:3]) for colour in colours]
    assert (light[0] > light[1] + 300) if scheme == "dark" else (light[1] > light[0] + 300)
    seen.check_quiet()
