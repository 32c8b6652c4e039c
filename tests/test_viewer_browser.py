"""The viewer in a real browser: what it says a token sees, folding, the keyboard, and text that would like to run."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from markupsafe import Markup

from mvtrain.cli import main
from mvtrain.evaluate.pages import embed_json, page_text, render_page
from mvtrain.evaluate.trace_view import record_of_completion, record_of_text
from tests.browser import chromium, visit
from tests.test_view import NESTED, TOKENIZER, TRACES, completion_of, details_of, trace_line

TEXT = (TRACES / "valid" / "nested.txt").read_text()
TEMPLATE = """<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{{ csp }}">
<style>{{ styles[0] }}</style><div id="here"></div>
<script type="application/json" id="record">{{ record }}</script><script>{{ scripts[0] }}</script>
<script>{{ scripts[1] }}</script>"""
SHOW = """
const record = JSON.parse(document.getElementById("record").textContent);
window.viewer = mvViewer.show(document.getElementById("here"), record);
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def show(browser, tmp_path):
    """Show one record on a page of its own, which is closed at the end and must have been quiet."""
    visits = []

    def show(record: dict, **context):
        path = tmp_path / f"{len(visits)}.html"
        scripts, styles = [page_text("viewer.js"), SHOW], [page_text("viewer.css")]
        page = render_page(TEMPLATE, scripts, styles, record=Markup(embed_json(record)))
        path.write_bytes(page.encode("utf-8", "replace"))
        visits.append(visit(browser, path, **context))
        return visits[-1].page

    yield show
    for found in visits:
        found.check_quiet()
        found.page.context.close()


def sees(page, indices: list[int]) -> list[set[int]]:
    """The tokens, counted from the start of the prompt, that the viewer's own arithmetic gives."""
    ranges = page.evaluate("indices => indices.map((i) => mvViewer.visibleTo(record.tokens, i))", indices)
    return [{k for a, b in found for k in range(a, b)} for found in ranges]


def marked(page) -> set[int]:
    """The tokens that are marked as seen on the page, whichever element carries the mark."""
    return set(
        page.evaluate(
            """() => [...document.querySelectorAll("[data-i]")].filter((span) => span.closest(".mv-seen, .mv-unseen")
            .classList.contains("mv-seen")).map((span) => Number(span.dataset.i))"""
        )
    )


# What a token sees


@pytest.mark.parametrize("scheme", ["isolated", "original"])
@pytest.mark.parametrize("seed", [1, 5])
def test_the_viewer_and_the_engine_agree_on_what_every_token_sees(show, seed, scheme):
    completion = completion_of(seed, scheme)
    record = record_of_completion("t", trace_line(completion), TOKENIZER)
    page = show(record)
    mask = completion.layout.dense_mask()
    indices = list(range(0, len(completion.token_ids), 3))
    found = sees(page, indices)
    for i, seen in zip(indices, found, strict=True):
        at = len(completion.prompt_ids) + i
        assert seen == set(mask[at].nonzero().flatten().tolist())
        assert seen == {k for a, b in completion.visible_to(i) for k in range(a, b)}
    # Negative control: one token less in a node's ranges is noticed.
    k = next(k for k, node in enumerate(record["tokens"]["nodes"]) if node[3])
    wrong = copy.deepcopy(record)
    wrong["tokens"]["nodes"][k][3][-1][1] -= 1
    assert sees(show(wrong), indices) != found


@pytest.mark.parametrize("scheme", ["isolated", "original"])
def test_a_click_marks_exactly_what_the_token_sees(show, scheme):
    completion = completion_of(1, scheme)
    page = show({"title": "t", "question": "q", "response": completion.text, "problems": [], "figures": {},
                 "tokens": details_of(completion)})  # fmt: skip
    mask = completion.layout.dense_mask()
    shift = len(completion.prompt_ids)
    last = len(completion.token_ids) - 2  # the end of text has no text to click
    for i in (0, last // 3, last // 2, last):
        page.locator(f"[data-i='{i}']").first.click()
        page.evaluate("viewer.text.chunks.forEach((chunk) => viewer.text.split(chunk))")  # marks hold for those too
        assert marked(page) == {k - shift for k in mask[shift + i].nonzero().flatten().tolist() if k >= shift}
        panel = page.locator(".mv-panel").inner_text()
        assert f"{int(mask[shift + i].sum()):,} tokens" in panel and "3 of 3" in panel
    assert marked(page) != set(range(last))


def test_the_panel_says_all_that_is_known_of_a_token(show):
    completion = completion_of(1, "isolated")
    details = details_of(completion)
    page = show({"title": "t", "question": "", "response": completion.text, "problems": [], "figures": {},
                 "tokens": details})  # fmt: skip
    forced = details["logprobs"].index(None)
    page.locator(f"[data-i='{forced}']").first.click()
    facts = page.locator(".mv-panel").inner_text()
    assert "forced by the engine" in facts and f"pass\n{details['passes'][forced]}" in facts
    page.locator("[data-i='0']").first.click()
    facts = page.locator(".mv-panel").inner_text()
    assert f"{details['logprobs'][0]:.4f}" in facts and "top level" in facts and "position\n3" in facts


# The text and its tokens


@pytest.mark.parametrize("path", sorted((TRACES / "valid").glob("*.txt")), ids=lambda path: path.stem)
def test_all_of_the_text_is_there_token_by_token(show, path):
    text = path.read_text() + " 😀é"
    record = record_of_text("t", "q", text, TOKENIZER)
    page = show(record)
    page.evaluate("viewer.text.chunks.forEach((chunk) => viewer.text.split(chunk))")
    pieces = page.evaluate("""() => viewer.text.chunks.map((chunk) => chunk.element.textContent)""")
    assert "".join(pieces) == text
    spans = page.evaluate(
        "[...document.querySelectorAll('[data-i]')].map((span) => [Number(span.dataset.i), span.textContent])"
    )
    starts, ends = [0, *record["tokens"]["ends"]], record["tokens"]["ends"]
    assert all(text[starts[i] : ends[i]] == piece for i, piece in spans)
    assert {i for i, _ in spans} == {i for i in range(len(ends)) if starts[i] < ends[i]}


@pytest.mark.parametrize("path", sorted((TRACES / "invalid").glob("*.txt")), ids=lambda path: path.stem)
def test_faulty_text_is_shown_whole_with_its_problems(show, path):
    record = record_of_text("t", "q", path.read_text())
    page = show(record)
    assert "".join(page.evaluate("viewer.text.chunks.map((c) => c.element.textContent)")) == record["response"]
    assert page.locator(".mv-problems li").all_inner_texts() == record["problems"]


def test_long_responses_are_cut_into_spans_only_where_they_are_looked_at(show):
    path = "word " * 2000
    text = f"<Think>{path * 2}<Parallel><Goal><Outline>1: a</Outline></Goal><Path>1: {path}</Path>" + (
        f"<Conclusion>c</Conclusion></Parallel>{path * 7}</Think>"
    )
    record = record_of_text("t", "q", text)
    assert len(record["tokens"]["positions"]) > 20000
    page = show(record)
    page.wait_for_selector("[data-i='5']")
    count = "document.querySelectorAll('[data-i]').length"
    assert 0 < page.evaluate(count) < 4000
    assert page.locator(".mv-path[open]").count() == 0
    milliseconds = page.evaluate(
        "() => { const t = performance.now(); viewer.select(19000); return performance.now() - t; }"
    )
    assert milliseconds < 1000 and page.evaluate(count) < 8000
    assert page.locator(".mv-selected").inner_text().strip() == "word"


# Lanes


def lanes(page) -> list[str]:
    page.wait_for_selector(".mv-bar")
    return page.evaluate("[...document.querySelectorAll('.mv-bar')].map((bar) => bar.getAttribute('aria-label'))")


def test_bars_stand_where_the_tokens_do(show):
    record = record_of_text("t", "q", NESTED)
    page = show(record)
    page.wait_for_selector(".mv-bar")
    positions = record["tokens"]["positions"]
    scale = page.evaluate("viewer.lanes.scale")
    bars = page.evaluate(
        """[...document.querySelectorAll(".mv-bar")].map((bar) => [Number(bar.dataset.start), Number(bar.dataset.end),
        Number(bar.getAttribute("x")), Number(bar.getAttribute("width")), Number(bar.dataset.lane)])"""
    )
    assert sorted(i for start, end, *_ in bars for i in range(start, end)) == list(range(len(positions)))
    for start, end, x, width, lane in bars:
        assert x == pytest.approx(10 + scale * positions[start])
        assert width == pytest.approx(max(2, scale * (positions[end - 1] + 1 - positions[start]) - 0.8))
        assert {record["tokens"]["token_branches"][i] for i in range(start, end)} == {lane}
    # Of the two inner paths, of 7 and 8 words, the second decides, and the first waits for one step.
    critical = page.evaluate(
        "[...document.querySelectorAll('.mv-lane:has(.mv-critical)')].map((g) => Number(g.dataset.of))"
    )
    assert sorted(critical) == [0, 1, 3]
    assert page.locator(".mv-wait").count() == 1
    assert page.locator(".mv-wait title").text_content() == "path 1.1 waits 1 steps for the join"


def test_blocks_fold_and_unfold_with_mouse_and_keyboard(show):
    page = show(record_of_text("t", "q", TEXT))
    all_bars = lanes(page)
    folds = page.locator(".mv-fold")
    assert folds.count() == 2 and folds.nth(0).get_attribute("aria-expanded") == "true"
    page.locator("[data-fold='0']").click()  # the outer one
    assert [bar for bar in lanes(page) if bar.startswith("2 paths,")] and len(lanes(page)) < len(all_bars)
    assert not any(bar.startswith("path 1.1") for bar in lanes(page))
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "false"
    page.keyboard.press("Enter")
    assert lanes(page) == all_bars
    page.get_by_role("button", name="Fold all blocks", exact=True).click()
    assert len(lanes(page)) < len(all_bars)
    page.get_by_role("button", name="Unfold all blocks").click()
    assert lanes(page) == all_bars


def test_a_click_on_a_lane_goes_to_its_text(show):
    page = show(record_of_text("t", "q", TEXT), viewport={"width": 1100, "height": 500})
    page.get_by_role("button", name="Close all blocks and paths").click()
    page.get_by_label("path 1.2: Even roots", exact=False).click()
    part = page.locator(".mv-part").filter(has_text="two")
    assert part.first.is_visible() and page.locator(".mv-path[open]").count() == 2, "1 and 1.2"
    box = part.first.bounding_box()
    assert 0 <= box["y"] <= 500, "scrolled into view"
    assert page.locator(".mv-bar.mv-chosen").get_attribute("aria-label").startswith("path 1.2: Even roots")
    page.keyboard.press("Escape")
    assert page.locator(".mv-part").count() == 0


def test_lanes_show_what_a_token_sees(show):
    page = show(record_of_text("t", "q", TEXT))
    page.locator(".mv-path .mv-token", has_text="27").click()  # in path 2
    dim = page.evaluate(
        "[...document.querySelectorAll('.mv-bar.mv-unseen')].map((bar) => bar.getAttribute('aria-label'))"
    )
    assert {label.split(" (")[0].split(":")[0].split(",")[0] for label in dim} >= {"path 1", "path 1.1", "path 1.2"}
    assert not any(label.startswith("path 2") for label in dim)
    assert page.locator(".mv-cursor").get_attribute("visibility") == "visible"


def test_a_path_that_was_written_in_sequence_is_no_lane(show):
    """Tags without effect: the text has a block, the tokens are all of the top level."""
    record = record_of_text("t", "q", TEXT)
    count = len(record["tokens"]["positions"])
    record["tokens"] |= {"branches": record["tokens"]["branches"][:1], "token_branches": [0] * count,
                         "positions": list(range(count)), "nodes": [[0, count, 0, []]]}  # fmt: skip
    page = show(record)
    assert page.locator(".mv-fold").count() == 0 and page.locator(".mv-path").count() == 4


def test_without_ends_the_lanes_lead_to_sections(show):
    page = show(record_of_completion("t", trace_line(completion_of(1, "isolated"))))
    assert page.locator(".mv-bar").count() > 3 and page.locator("[data-i]").count() == 0
    page.locator(".mv-lane[data-of='1'] .mv-bar").first.click()
    assert page.locator(".mv-path.mv-chosen-section > summary .mv-label").first.inner_text() == "1"


# Keyboard and page


def test_arrow_keys_go_from_token_to_token_and_open_what_is_closed(show):
    page = show(record_of_text("t", "q", TEXT))
    page.get_by_role("button", name="Close all blocks and paths").click()
    page.locator(".mv-text").focus()

    def selected():
        return int(page.locator(".mv-selected").first.get_attribute("data-i"))

    page.keyboard.press("ArrowRight")
    assert selected() == 0
    for _ in range(14):
        page.keyboard.press("ArrowRight")
    assert selected() == 14 and page.locator(".mv-selected").first.is_visible()
    page.keyboard.press("ArrowLeft")
    assert selected() == 13
    page.keyboard.press("Escape")
    assert page.locator(".mv-selected").count() == 0 and page.locator(".mv-seen").count() == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [700, 1000, 1600])
def test_nothing_sticks_out_of_the_page(show, width, dark):
    page = show(
        record_of_text("t" * 300, "q" * 500, TEXT + "\n" + "x" * 400, figures={"reference": "r" * 300}),
        viewport={"width": width, "height": 800},
        color_scheme="dark" if dark else "light",
    )
    page.get_by_label("paths side by side").check()
    page.locator("[data-i='30']").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Zoom in").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "</script><script>alert(3)</script>",
    "<a href='javascript:alert(4)'>x</a>",
    "<iframe src='https://example.org'></iframe><link rel=stylesheet href='https://example.org/x.css'>",
    "<!-- <script> --><style>@import 'https://example.org/y.css'</style><svg onload=alert(5)>",
    "{{ 7 * 7 }}{% raw %}\u2028\u2029\x00\ud800",
]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_stays_text(browser, tmp_path, hostile):
    block = f"<Parallel><Goal><Outline>1: {hostile}</Outline></Goal><Path>1: {hostile}</Path><Conclusion>{hostile}"
    response = f"{hostile}{block}</Conclusion></Parallel>{hostile}"
    rows = [
        {"question": hostile, "response": response, "answer": hostile[:70], "id": hostile, "task": hostile},
        {"question": hostile, "response": f"{response}</Path>", "id": 2},
        {"question": hostile, "response": 7, "id": 3, "text": hostile},
        sample_with(hostile, response),
    ]
    # As a file can have it: an object whose names and values want to be something else.
    file = tmp_path / "<b>rows.jsonl"
    lines = [*map(json.dumps, rows), hostile]
    file.write_text("\n".join(lines), "utf-8", "replace")
    out = tmp_path / "page.html"
    assert main(["view", str(file), "--out", str(out), "--no-open"]) == 0
    found = visit(browser, out)
    page = found.page
    for number in range(len(lines)):
        page.evaluate("index => mvPage.show(index)", number)
        for label in ("Open all blocks and paths", "Unfold all blocks"):
            if page.get_by_role("button", name=label).count():
                page.get_by_role("button", name=label).click()
        if page.locator("[data-i]").count():
            page.locator("[data-i]").first.click()
            page.locator("[data-i]").last.hover()
        assert (
            page.locator("main :is(script, img, iframe, a, link, style, svg[onload], b), nav :is(img, b)").count() == 0
        )
    page.evaluate("mvPage.show(0)")
    page.wait_for_function("document.querySelector('main h2')?.textContent.startsWith('row 1')")
    shown = page.locator(".mv-question-text").evaluate("element => element.textContent")
    assert shown.replace("\ud800", "?").replace("\ufffd", "?") == hostile.replace("\ud800", "?")
    assert page.evaluate("document.scripts.length") == 3
    found.check_quiet()
    page.context.close()


def sample_with(hostile: str, response: str) -> dict:
    branches = [{"label": hostile, "parent": None, "lineage": [], "num_tokens": 1, "ended_by": hostile}]
    tokens = {"num_prompt": 0, "ends": [9], "branches": branches, "token_branches": [0], "positions": [0],
              "logprobs": [None], "passes": [1], "nodes": [[0, 1, 0, []]],
              "scheme": hostile, "unit": hostile}  # fmt: skip
    return {"response": response, "question": hostile, "problems": [hostile], "answer": hostile, "correct": False,
            "finish_reason": hostile, "num_prompt": 0, "critical_path": 1, "num_generated": 1, "mode": hostile,
            "tokens": tokens}  # fmt: skip


def test_the_policy_stops_what_escaping_would_miss(browser, tmp_path):
    """Negative control of the test above: markup that does reach the page neither runs nor loads."""
    out = tmp_path / "page.html"
    (tmp_path / "a.txt").write_text(TEXT)
    assert main(["view", str(tmp_path / "a.txt"), "--out", str(out), "--no-open"]) == 0
    page_with = out.read_text().replace(
        '<div id="record">', "<script>alert(1)</script><img src=x onerror=alert(2)><div id='record'>"
    )
    out.write_text(page_with)
    found = visit(browser, out)
    found.page.wait_for_selector(".mv-bar")
    assert not any(complaint.startswith("dialog") for complaint in found.complaints)
    assert len(found.complaints) >= 2 and all("Content Security Policy" in said for said in found.complaints)
    found.page.context.close()


def test_the_list_of_rows(browser, tmp_path):
    rows = [{"question": f"question {'odd' if i % 2 else 'even'}", "response": f"answer {i}"} for i in range(1, 31)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "page.html"
    assert main(["view", str(file), "--limit", "20", "--out", str(out), "--no-open"]) == 0
    found = visit(browser, out, "3")
    page = found.page

    def shows(text: str):
        page.wait_for_function("text => document.querySelector('.mv-text')?.textContent.trim() === text", arg=text)

    shows("answer 3")
    assert "The first 20 of 30 rows" in page.locator("nav").inner_text()
    page.locator("#search").fill("ODD")
    assert page.locator("#rows li").count() == 10 and page.locator("#found").inner_text() == "10 of 20 rows"
    page.keyboard.press("ArrowDown")
    shows("answer 5")
    page.locator("#rows").focus()
    page.keyboard.press("End")
    shows("answer 19")
    page.locator("#rows li").first.click()
    shows("answer 1")
    assert page.locator("#rows li[aria-selected=true]").count() == 1 and page.url.endswith("#1")
    found.check_quiet()
    page.context.close()


def test_real_responses_are_shown_without_complaint(browser, tmp_path):
    real = Path(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"
    if not real.exists():
        pytest.skip("the real traces are not here")
    out = tmp_path / "page.html"
    assert main(["view", str(real), "--out", str(out), "--no-open"]) == 0
    found = visit(browser, out)
    page = found.page
    kinds = [json.loads(line)["kind"] for line in real.read_text().splitlines()]
    for index, kind in enumerate(kinds):
        page.evaluate("index => mvPage.show(index)", index)
        page.wait_for_function("title => document.querySelector('main h2')?.textContent.startsWith(title)",
                               arg=f"row {index + 1} ")  # fmt: skip
        page.wait_for_selector(".mv-bar, main .mv-note")
        assert page.locator(".mv-problems").count() == (kind == "malformed")
        assert (page.locator(".mv-fold").count() > 0) or kind != "clean"
    found.check_quiet()
    page.context.close()
