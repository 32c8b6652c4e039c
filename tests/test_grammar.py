"""The grammar against generated traces, files with known faults, and real responses."""

from __future__ import annotations

import json
import pickle
import re
import time
from pathlib import Path as FilePath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain import layout
from mvtrain.grammar import (
    TAGS,
    Block,
    Outline,
    Path,
    Think,
    Trace,
    TraceError,
    check,
    child_label,
    depth,
    num_blocks,
    outline_labels,
    parse,
    render,
    walk,
)

TRACES = FilePath(__file__).parent / "traces"
VALID = sorted((TRACES / "valid").glob("*.txt"))
INVALID = sorted((TRACES / "invalid").glob("*.txt"))
REAL = FilePath(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"

# Texts that are near the grammar without being in it: labels, angle brackets, lower-case tags, odd white space.
_pieces = [
    "1: ",
    "2.1:",
    ":",
    "<",
    ">",
    "</",
    "<path>",
    "< Path>",
    "Path",
    "\n",
    " ",
    "\t",
    "\u2028",
    "\x1c",
    "\u00e9",
    "x",
]
texts = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(_pieces), max_size=8).map("".join)).filter(
    lambda text: not re.search("|".join(TAGS) + "|</?think>", text)
)


@st.composite
def blocks(draw, parent: str | None = None, levels: int = 2) -> Block:
    labels = [child_label(parent, index) for index in range(1, draw(st.integers(1, 3)) + 1)]
    outlines = [Outline(label, draw(texts)) for label in labels]
    paths = [Path(label, tuple(draw(parts(label, levels)))) for label in labels]
    return Block(tuple(outlines), tuple(paths), draw(texts))


@st.composite
def parts(draw, parent: str | None = None, levels: int = 3) -> list:
    return [
        draw(blocks(parent, levels - 1)) if levels > 0 and draw(st.booleans()) else draw(texts)
        for _ in range(draw(st.integers(0, 3)))
    ]


@st.composite
def traces(draw) -> Trace:
    think = [Think(tuple(draw(parts())))] if draw(st.booleans()) else []
    return Trace((*draw(parts(levels=1)), *think, *draw(parts(levels=1))))


@settings(deadline=None, max_examples=150)
@given(traces())
def test_parse_undoes_render(trace):
    text = render(trace)
    assert check(text) == []
    assert parse(text) == trace
    assert render(parse(text)) == text


@settings(deadline=None, max_examples=150)
@given(traces(), st.data())
def test_white_space_around_tags_does_not_matter(trace, data):
    text = render(trace)
    spaces = st.sampled_from(["", " ", "\n", "\n\n  ", "\t", "\r\n"])
    spaced = re.sub("|".join(TAGS), lambda tag: data.draw(spaces) + tag.group() + data.draw(spaces), text)
    assert parse(spaced) == trace
    assert parse(re.sub(r"(</?)Think>", r"\1think>", text)) == trace


@settings(deadline=None, max_examples=100)
@given(traces(), st.data())
def test_taking_one_tag_away_is_always_noticed(trace, data):
    text = render(trace)
    tags = list(re.finditer("|".join(TAGS), text))
    if not tags:
        return
    tag = data.draw(st.sampled_from(tags))
    assert check(text[: tag.start()] + text[tag.end() :])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from([*TAGS, "1: ", "1.1: ", "2: ", "text", "\n"]), max_size=30).map("".join))
def test_check_and_parse_agree_on_any_text(text):
    problems = check(text)
    for problem in problems:
        lines = text.split("\n")
        assert 1 <= problem.line <= len(lines) and 1 <= problem.column <= len(lines[problem.line - 1]) + 1
    if problems:
        with pytest.raises(TraceError) as error:
            parse(text)
        assert (error.value.line, error.value.column) == (problems[0].line, problems[0].column)
        assert error.value.excerpt == problems[0].excerpt
    else:
        assert parse(render(parse(text))) == parse(text)


@pytest.mark.parametrize("file", VALID, ids=lambda file: file.stem)
def test_valid_files_are_accepted(file):
    text = file.read_bytes().decode()
    assert check(text) == []
    assert parse(render(parse(text))) == parse(text)


@pytest.mark.parametrize("file", INVALID, ids=lambda file: file.stem)
def test_invalid_files_give_exactly_their_messages(file):
    problems = check(file.read_text())
    assert "".join(f"{p}\n{p.excerpt}\n" for p in problems) == file.with_suffix(".expected").read_text()
    with pytest.raises(TraceError) as error:
        parse(file.read_text())
    assert str(error.value) == str(problems[0])


def test_there_are_files_to_test():
    assert len(VALID) >= 8 and len(INVALID) >= 25


def test_tree_of_the_nested_file():
    trace = parse((TRACES / "valid" / "nested.txt").read_text())
    think, answer = trace.parts
    intro, outer = think.parts
    assert (intro, answer) == ("Count the squares and the cubes below 30.", "Answer: 5 and 3")
    assert outer.outlines == (Outline("1", "Count the squares"), Outline("2", "Count the cubes"))
    before, inner, after = outer.paths[0].parts
    assert (before, after) == ("Odd and even roots apart.", "That is all of them.")
    assert inner.paths == (Path("1.1", ("1, 9, 25: three.",)), Path("1.2", ("4, 16: two.",)))
    assert (inner.conclusion, outer.conclusion) == ("Five squares.", "Five squares and three cubes.")
    assert list(walk(trace)) == [(outer, 1), (inner, 2)]
    assert (num_blocks(trace), depth(trace)) == (2, 2)


def test_walk_gives_blocks_in_order_of_opening():
    text = (TRACES / "valid" / "nested.txt").read_text()
    trace = parse(
        text + "<Parallel><Goal><Outline>1: a</Outline></Goal><Path>1: b</Path><Conclusion>last</Conclusion></Parallel>"
    )
    assert [(block.conclusion, level) for block, level in walk(trace)] == [
        ("Five squares and three cubes.", 1),
        ("Five squares.", 2),
        ("last", 1),
    ]
    assert num_blocks(parse("no block")) == depth(parse("no block")) == 0


def test_canonical_text_is_left_as_it_is():
    for name in ("two_paths", "nested", "no_block"):
        text = (TRACES / "valid" / f"{name}.txt").read_text()
        assert render(parse(text)) == text.rstrip("\n")


def test_nodes_normalise_their_texts():
    assert Trace((" a ", "", "b\n")) == Trace(("a\nb",))
    assert Outline("1", "\n x ") == Outline("1", "x")
    assert Path("1", ["x"]).parts == ("x",)


def test_labels():
    assert child_label(None, 2) == "2"
    assert child_label("1.3", 2) == "1.3.2"
    goal = "\n<Outline>\n1: a\n</Outline><Outline>no label: b</Outline> <Outline> 1.2 : c</Outline><Outline>3"
    assert outline_labels(goal) == ["1", None, "1.2", None]
    assert outline_labels("1: not an outline") == []


def test_outline_labels_agree_with_parse():
    for file in VALID:
        text = file.read_bytes().decode()
        goals = re.findall(r"<Goal>(.*?)</Goal>", text, re.DOTALL)
        expected = [[outline.label for outline in block.outlines] for block, _ in walk(parse(text))]
        assert [outline_labels(goal) for goal in goals] == expected


def test_error_can_be_pickled_and_is_a_value_error():
    with pytest.raises(ValueError) as error:
        parse("</Path>")
    copy = pickle.loads(pickle.dumps(error.value))
    assert str(copy) == "line 1, column 1: </Path> closes nothing" and copy.line == 1


def test_tags_are_the_layouts_tags():
    assert TAGS == layout.TAGS


def deep_text(levels: int) -> str:
    labels = [".".join(["1"] * level) for level in range(1, levels + 1)]
    opened = (f"<Parallel><Goal><Outline>{label}:</Outline></Goal><Path>{label}:" for label in labels)
    return "".join(opened) + "</Path><Conclusion></Conclusion></Parallel>" * levels


def test_deep_nesting_meets_no_recursion_limit():
    trace = parse(deep_text(1500))
    assert (num_blocks(trace), depth(trace)) == (1500, 1500)
    assert parse(render(trace)) is not None
    assert len(check("<Parallel><Goal><Outline>1: a</Outline></Goal><Path>1:" * 20_000)) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "<Path>" * 20_000,
        "</Path>" * 20_000,
        "<Parallel>" * 20_000,
        "<Think>" * 20_000 + "<Outline>" * 20_000,
        "<Parallel><Path>" * 20_000 + "</Parallel>" * 20_000,
        "<Parallel></Goal>x" * 20_000,
        "<Outline>" + " " * 1_000_000,
        "<Path>" + "1." * 500_000,
        "<" * 1_000_000,
        "word " * 200_000 + "</Path>",
    ],
    ids=lambda text: text[:20],
)
def test_long_text_takes_linear_time(text):
    start = time.process_time()
    check(text)
    assert time.process_time() - start < 10  # a quadratic reader needs minutes


def real_rows() -> list[dict]:
    if not REAL.exists():
        pytest.skip("real traces are not at hand (../shared/data/traces.jsonl)")
    return [json.loads(line) for line in REAL.read_text().splitlines()]


def test_real_responses_are_judged_as_labelled():
    rows = real_rows()
    kinds = [row["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("clean", "sequential", "malformed")] == [29, 17, 21]
    for row in rows:
        problems = check(row["response"])
        assert bool(problems) == (row["kind"] == "malformed"), row["id"]
        if not problems:
            trace = parse(row["response"])
            assert (num_blocks(trace), depth(trace)) == (row["blocks"], row["depth"])
            assert render(trace) == row["response"].rstrip()


def test_real_responses_cut_off_name_the_open_tag():
    cut_off = [row for row in real_rows() if row["problems"] == ["unclosed:Think"]]
    assert cut_off
    for row in cut_off:
        (problem,) = check(row["response"])
        assert problem.message == "the text ends, but <Think> is still open"
