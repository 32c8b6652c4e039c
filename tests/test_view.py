"""Viewer records against layouts, hand-worked positions and the engine; `mvtrain view` through the command line."""

from __future__ import annotations

import base64
import copy
import functools
import gzip
import json
import re
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mvtrain.cli import main
from mvtrain.commands import view
from mvtrain.data.statistics import critical_path, token_counter
from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.evaluate.pages import content_security_policy, embed_json, pack, page_text, render_page
from mvtrain.evaluate.records import token_details
from mvtrain.evaluate.trace_view import (
    fault_of_tokens,
    record_of_completion,
    record_of_sample,
    record_of_text,
    text_tokens,
)
from mvtrain.grammar import check, parse, render
from mvtrain.layout import Layout, Node
from tests.engine_models import EOS, TAGS, TOKENIZER, random_trace
from tests.tiny import tiny_model, tiny_tokenizer

TRACES = Path(__file__).parent / "traces"
REAL = Path(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"
VALID = sorted((TRACES / "valid").glob("*.txt"))
INVALID = sorted((TRACES / "invalid").glob("*.txt"))
SCHEMES = ("isolated", "original")
TWO_PATHS = (
    "go <Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>\n"
    "<Path>1: x y</Path>\n<Path>2: z</Path>\n<Conclusion>c</Conclusion></Parallel>\nend\n"
)
NESTED = (
    "<Parallel><Goal><Outline>1: a</Outline></Goal><Path>1: "
    "<Parallel><Goal><Outline>1.1: b</Outline><Outline>1.2: c</Outline></Goal>"
    "<Path>1.1: u</Path><Path>1.2: v w</Path><Conclusion>d</Conclusion></Parallel></Path>"
    "<Conclusion>e</Conclusion></Parallel>"
)


def words_of(record: dict) -> list[str]:
    starts = [0, *record["tokens"]["ends"]]
    return [record["response"][a:b].strip() for a, b in pairwise(starts)]


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@functools.cache
def completion_of(seed: int, scheme: str):
    """A random trace that is forced through the engine."""
    script = write_script(random_trace(seed), TOKENIZER)
    engine = Engine(tiny_model(), TOKENIZER, scheme)
    engine.sampler = ScriptedSampler(script, len(TOKENIZER), EOS)
    (completion,) = engine.generate([[65, 66, 67]], SamplingParams(max_tokens=4000, max_total_tokens=20000))
    assert completion.trace is not None and not completion.problems
    return completion


def details_of(completion) -> dict:
    return token_details(completion, decode)


# Records of text


def test_positions_of_two_paths_worked_by_hand():
    record = record_of_text("t", "q", TWO_PATHS)
    # go, <Parallel>, <Goal>; two outlines of five words each; </Goal> at 13. Both paths start at 14.
    goal = ["go", "<Parallel>", "<Goal>", *"<Outline> 1 : a </Outline> <Outline> 2 : b </Outline>".split(), "</Goal>"]
    paths = [*"<Path> 1 : x y </Path>".split(), *"<Path> 2 : z </Path>".split()]
    assert words_of(record) == [*goal, *paths, "<Conclusion>", "c", "</Conclusion>", "</Parallel>", "end"]
    tokens = record["tokens"]
    assert tokens["positions"] == [*range(14), *range(14, 20), *range(14, 19), *range(20, 25)]
    assert tokens["token_branches"] == [0] * 14 + [1] * 6 + [2] * 5 + [0] * 5
    assert tokens["nodes"] == [
        [0, 14, 0, []],
        [14, 20, 14, [[0, 14]]],
        [20, 25, 14, [[0, 14]]],
        [25, 30, 20, [[0, 25]]],
    ]
    assert [(b["label"], b["lineage"], b["parent"], b["num_tokens"]) for b in tokens["branches"]] == [
        (None, [], None, 19), ("1", [0, 0], 0, 6), ("2", [0, 1], 0, 5),
    ]  # fmt: skip
    assert tokens["ends"][-1] == len(TWO_PATHS), "the white space at the end goes with the last word"
    assert tokens["unit"] == "words" and tokens["num_prompt"] == 0
    assert record["figures"] == {"words": 30, "critical_path": 25, "parallelism": 30 / 25, "paths": 2}


def test_positions_of_nested_paths_worked_by_hand():
    tokens = text_tokens(NESTED)
    # <Parallel> to </Goal> are 0 to 7; path 1 has its three first words at 8, the inner goal at 11 to 26 ...
    inner_goal = 1 + 1 + 2 * 7 + 1  # "1.1" is three words: 1 . 1
    first = 8 + 3
    fork = first + inner_goal
    paths = [list(range(fork, fork + 7)), list(range(fork, fork + 8))]
    join = fork + 8
    assert tokens["positions"] == [
        *range(8 + 3 + inner_goal), *paths[0], *paths[1],
        *range(join, join + 5),  # the inner conclusion, </Parallel>, and </Path> of path 1
        *range(join + 5, join + 9),
    ]  # fmt: skip
    lineages = [branch["lineage"] for branch in tokens["branches"]]
    assert lineages == [[], [0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert [branch["label"] for branch in tokens["branches"]] == [None, "1", "1.1", "1.2"]
    assert [branch["parent"] for branch in tokens["branches"]] == [None, 0, 1, 1]


def test_the_two_schemes_worked_by_hand():
    """The example of docs/attention-and-positions.md: here one byte is one token, so there is room for a shift."""
    text = "<Parallel><Goal></Goal>\n<Path>\nA\n</Path>\n<Path>\nBBB\n</Path>\n<Conclusion>\n</Conclusion></Parallel>"
    isolated, original = (text_tokens(text, TOKENIZER, scheme) for scheme in SCHEMES)
    assert isolated["positions"] == [0, 1, 2, *range(3, 9), *range(3, 11), *range(11, 16)]
    assert isolated["token_branches"] == [0] * 3 + [1] * 6 + [2] * 8 + [0] * 5
    assert original["positions"] == [0, 1, 2, 3, *range(3, 9), *range(3, 11), *range(10, 14)]
    assert original["token_branches"] == [0] * 4 + [1] * 5 + [0] + [2] * 7 + [0] * 5


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_words_agree_with_the_statistics_of_check(path):
    text = path.read_text()
    tokens = text_tokens(text)
    assert (len(tokens["positions"]), max(tokens["positions"]) + 1) == critical_path(text)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_tokens_agree_with_the_layout(path, scheme):
    text = path.read_text()
    tokens = text_tokens(text, TOKENIZER, scheme)
    layout = Layout.from_ids(TOKENIZER(text)["input_ids"], TAGS, scheme)
    assert tokens["positions"] == layout.position_ids.tolist()
    nodes = tuple(Node(start, end, at, tuple(map(tuple, sees))) for start, end, at, sees in tokens["nodes"])
    assert torch.equal(Layout(nodes, layout.documents, scheme).dense_mask(), layout.dense_mask())
    if scheme == "isolated":
        count = token_counter(TOKENIZER)
        assert max(tokens["positions"]) + 1 == critical_path(text, count)[1]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", range(6))
def test_reading_a_completion_as_text_finds_the_branches_of_the_engine(seed, scheme):
    completion = completion_of(seed, scheme)
    tokens = text_tokens(completion.text, TOKENIZER, scheme)
    length = len(tokens["positions"])
    assert length == len(completion.token_ids) - 1, "all but the end of text"
    assert [p + 3 for p in tokens["positions"]] == completion.position_ids[:length]
    assert tokens["token_branches"] == completion.token_branches[:length]
    for ours, theirs in zip(tokens["branches"], map(asdict, completion.branches), strict=True):
        assert (ours["lineage"], ours["label"]) == (list(theirs["lineage"]), theirs["label"])
        assert ours["parent"] == theirs["parent"]
    assert tokens["ends"] == details_of(completion)["ends"][:length]


def test_ends_of_tokens_within_a_character():
    """One byte is one token: é has two, the last of which has the character."""
    assert text_tokens("aé😀b", TOKENIZER)["ends"] == [1, 1, 2, 2, 2, 2, 3, 4]


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_faulty_text_is_shown_with_its_problems(path):
    text = path.read_text()
    record = record_of_text("t", "q", text)
    assert record["response"] == text and len(record["problems"]) == len(check(text)) > 0
    tokens = record["tokens"]
    assert tokens is None or fault_of_tokens(tokens, len(text)) is None


def test_text_that_is_cut_off_is_laid_out_as_far_as_it_goes():
    whole = text_tokens(TWO_PATHS)
    for length in range(1, len(whole["ends"])):
        cut = text_tokens(TWO_PATHS[: whole["ends"][length - 1]])
        assert cut["positions"] == whole["positions"][:length], length
        assert cut["token_branches"] == whole["token_branches"][:length]


def test_text_that_nests_without_end_has_no_lanes():
    def nest(depth):
        return "<Parallel><Goal></Goal><Path>" * depth + "</Path><Conclusion></Conclusion></Parallel>" * depth

    assert text_tokens(nest(32)) is not None and text_tokens(nest(33)) is None
    assert text_tokens(nest(3000)) is None


def test_a_tokenizer_without_the_tags_is_refused():
    with pytest.raises(ValueError, match="no token for <Think>"):
        text_tokens("x", tiny_tokenizer(with_tags=False))


@pytest.mark.skipif(not REAL.exists(), reason="the real traces are not here")
def test_real_responses():
    rows = [json.loads(line) for line in REAL.read_text().splitlines()]
    assert len(rows) == 67
    for row in rows:
        record = record_of_text(row["id"], row["question"], row["response"])
        tokens = record["tokens"]
        json.dumps(record)
        if tokens is not None:
            assert fault_of_tokens(tokens, len(row["response"])) is None
        if row["kind"] == "malformed":
            assert record["problems"]
        else:
            counted = len(tokens["positions"]), max(tokens["positions"]) + 1
            assert not record["problems"] and counted == critical_path(row["response"]), row["id"]


# Records of the engine's answers


def trace_line(completion) -> dict:
    """A line of `mvtrain generate --trace`, as JSON gives it back."""
    return json.loads(json.dumps({"prompt": "how many?", **completion.as_dict(tokens=True)}))


def test_a_traced_completion():
    completion = completion_of(1, "isolated")
    record = record_of_completion("t", trace_line(completion), TOKENIZER)
    details = json.loads(json.dumps(details_of(completion)))
    assert record["question"] == "how many?" and record["response"] == completion.text and record["problems"] == []
    assert record["figures"]["critical_path"] == completion.critical_path
    logprobs = record["tokens"].pop("logprobs")
    assert logprobs == pytest.approx(completion.logprobs)
    assert record["tokens"] == {name: value for name, value in details.items() if name != "logprobs"}


def test_a_traced_completion_without_a_tokenizer_has_lanes_and_no_single_tokens():
    record = record_of_completion("t", trace_line(completion_of(1, "isolated")))
    assert record["tokens"]["ends"] is None and record["tokens"]["positions"] and not record["problems"]


def sample_row(**changes) -> dict:
    row = {"response": TWO_PATHS, "question": "q", "problems": [], "correct": False, "answer": "3", "reference": "4",
           "finish_reason": "stop", "num_generated": 30, "critical_path": 20, "num_prompt": 5}  # fmt: skip
    return row | changes


def test_a_sample_with_and_without_tokens():
    completion = completion_of(2, "original")
    kept = record_of_sample("t", sample_row(response=completion.text, tokens=details_of(completion), correct=None))
    assert kept["tokens"]["scheme"] == "original" and kept["tokens"]["num_prompt"] == 3
    assert kept["figures"]["correct"] is None and kept["figures"]["parallelism"] == 1.5
    plain = record_of_sample("t", sample_row())
    assert plain["tokens"]["unit"] == "words" and plain["figures"]["correct"] is False


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"ends": [1]}, "1 `ends`"),
        ({"logprobs": ["high"] * 30}, "holds something that is no number"),
        ({"token_branches": [7] * 30}, "none of the 3 branches"),
        ({"token_branches": None}, "TypeError"),
        ({"nodes": [[0, 29, 0, []]]}, "do not cover tokens 0 to 30"),
        ({"nodes": [[0, 30, 0, [[3, 31]]]]}, "sees tokens that do not come before it"),
        ({"nodes": "abc"}, "ValueError"),
        ({"num_prompt": 4}, "position 0 is in the prompt of 4 tokens"),
        ({"ends": [9, *range(29)]}, "do not ascend"),
        ({"ends": [*range(29), 9999]}, "to at most"),
    ],
)
def test_tokens_that_do_not_fit_are_left_out_with_the_reason(change, fault):
    tokens = copy.deepcopy(text_tokens(TWO_PATHS))
    good = record_of_sample("t", sample_row(tokens=tokens))
    assert good["tokens"] == tokens and good["problems"] == []
    record = record_of_sample("t", sample_row(tokens=tokens | change))
    assert record["tokens"] is None and record["response"] == TWO_PATHS
    assert len(record["problems"]) == 1 and fault in record["problems"][0]


# Parts of pages

HOSTILE = "</script><!--<script>alert(1)</script>&amp;\u2028\u2029\ud800é😀"


def test_embedded_json_closes_no_element():
    text = embed_json({"a": HOSTILE})
    assert not re.search("[<>&\u2028\u2029\ud800]", text)
    assert json.loads(text) == {"a": HOSTILE}
    with pytest.raises(ValueError, match="cannot be shown"):
        embed_json([float("nan")])


def test_packed_values_come_back_and_are_the_same_every_time():
    value = {"a": HOSTILE, "b": [1, None, 0.5]}
    assert json.loads(gzip.decompress(base64.b64decode(pack(value)))) == value
    assert pack(value) == pack(value) and base64.b64decode(pack(value))[4:8] == bytes(4)


def test_the_policy_names_every_script_by_its_hash():
    # The example of the Content Security Policy Level 3 recommendation.
    policy = content_security_policy(["alert('Hello, world.');"], [])
    assert "script-src 'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='" in policy
    assert "default-src 'none'" in policy and "style-src 'none'" in policy and "unsafe" not in policy


def test_templates_escape_what_they_are_given():
    page = render_page("{{ title }}<script>{{ scripts[0] }}</script>", scripts=["a < b"], title="<b>")
    assert page == "&lt;b&gt;<script>a < b</script>"
    with pytest.raises(AssertionError):
        render_page("", scripts=["'</script>'"])


@pytest.mark.parametrize("name", ["viewer.js", "view.js"])
def test_scripts_make_no_markup_of_text(name):
    script = page_text(name)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)
    assert "http" not in script.replace("http://www.w3.org/2000/svg", "")


# The command


def write_rows(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def entries_of(page: Path) -> list[dict]:
    """The rows of a page with their records."""
    data = re.search(r'<script type="application/json" id="mv-data">(.*?)</script>', page.read_text(), re.DOTALL)
    rows = json.loads(data.group(1))["rows"]
    return [row | {"record": json.loads(gzip.decompress(base64.b64decode(row["packed"])))} for row in rows]


def show(tmp_path: Path, *args: str) -> list[dict]:
    out = tmp_path / "page.html"
    assert main(["view", *args, "--out", str(out), "--no-open"]) == 0
    return entries_of(out)


def test_every_kind_of_file(tmp_path):
    completion = completion_of(1, "isolated")
    rows = [
        {"question": "Q", "response": TWO_PATHS, "answer": "7", "id": "a"},
        trace_line(completion),
        sample_row(id="b"),
    ]
    first, second, third = show(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    assert (
        first["title"] == "row 1 · a" and first["question"] == "Q" and first["facts"] == "30 words · parallelism 1.20"
    )
    assert first["record"]["figures"]["answer"] == "7"
    assert second["record"]["response"] == completion.text
    assert third["facts"].startswith("wrong · 30 tokens")
    (plain,) = show(tmp_path, str(TRACES / "valid" / "nested.txt"))
    assert len(plain["record"]["tokens"]["branches"]) == 5
    chat = f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{TWO_PATHS}<|im_end|>"
    (turn,) = show(tmp_path, write_rows(tmp_path / "b.jsonl", [{"text": chat}]))
    assert turn["record"]["response"] == TWO_PATHS


def test_parquet_and_a_named_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"mine": [TWO_PATHS], "text": ["other"]}), tmp_path / "a.parquet")
    (entry,) = show(tmp_path, str(tmp_path / "a.parquet"), "--column", "mine")
    assert entry["record"]["response"] == TWO_PATHS


def test_a_tokenizer_gives_real_tokens(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    file = write_rows(tmp_path / "a.jsonl", [{"response": TWO_PATHS}])
    (entry,) = show(tmp_path, file, "--tokenizer", str(tmp_path / "tokenizer"), "--scheme", "original")
    assert entry["record"]["tokens"] == text_tokens(TWO_PATHS, TOKENIZER, "original")


def test_rows_that_cannot_be_read_are_on_the_page_and_named(tmp_path, capsys):
    rows = [{"response": TWO_PATHS}, "{not json", {"response": 5}, {"other": 1}, {"response": "</Path>"}]
    entries = show(tmp_path, write_rows(tmp_path / "a.jsonl", rows))
    printed = capsys.readouterr()
    assert [len(entry["record"]["problems"]) for entry in entries] == [0, 1, 1, 1, 1]
    assert "a.jsonl row 2: column 2: not JSON" in printed.err
    assert "a.jsonl row 3: column 'response' holds int" in printed.err
    assert "a.jsonl row 4: column 'response' is missing" in printed.err
    assert "3 rows could not be read" in printed.out and "row 5" not in printed.err


def test_one_row_by_number_or_id(tmp_path, capsys):
    rows = [{"response": "x", "id": "2"}, {"response": "y", "id": "b"}, {"response": "z", "id": "b"}, {"response": 1}]
    file = write_rows(tmp_path / "a.jsonl", rows)
    assert [entry["record"]["response"] for entry in show(tmp_path, file, "--row", "2")] == ["y"]
    assert [entry["record"]["response"] for entry in show(tmp_path, file, "--row", "b")] == ["y", "z"]
    for row, error in [("9", "no row 9"), ("c", "no row c"), ("4", "a.jsonl row 4: column 'response' holds int")]:
        assert main(["view", file, "--row", row, "--out", str(tmp_path / "p.html"), "--no-open"]) == 2
        assert error in capsys.readouterr().err


def test_the_limit_says_what_is_left_out(tmp_path, capsys):
    file = write_rows(tmp_path / "a.jsonl", [{"response": f"r{i}"} for i in range(5)])
    assert len(show(tmp_path, file, "--limit", "2")) == 2
    note = "The first 2 of 5 rows; --limit or --row shows others."
    assert note in capsys.readouterr().out and note in (tmp_path / "page.html").read_text()
    assert main(["view", file, "--limit", "0"]) == 2


def test_nothing_is_overwritten_but_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.html").write_text(TWO_PATHS)
    assert main(["view", "trace.html", "--no-open"]) == 2
    assert "this is the input" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text(TWO_PATHS)
    (tmp_path / "a.html").write_text("mine")
    assert main(["view", "a.txt", "--no-open"]) == 2
    assert "was not written by `mvtrain view`" in capsys.readouterr().err
    assert (tmp_path / "a.html").read_text() == "mine"
    (tmp_path / "a.html").unlink()
    for _ in range(2):  # the second time over its own page
        assert main(["view", "a.txt", "--no-open"]) == 0
    assert len(entries_of(tmp_path / "a.html")) == 1
    assert not list(tmp_path.glob("*.partial"))


def test_the_browser_opens_where_there_is_a_display(tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    (tmp_path / "a.txt").write_text(TWO_PATHS)
    command = ["view", str(tmp_path / "a.txt"), "--out", str(tmp_path / "p.html")]
    monkeypatch.setenv("DISPLAY", ":0")
    main(command)
    assert opened == [(tmp_path / "p.html").as_uri()]
    main([*command, "--no-open"])
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(view.sys, "platform", "linux")
    main(command)
    assert len(opened) == 1 and "no browser opened here" in capsys.readouterr().out


def test_files_that_cannot_be_shown(tmp_path, capsys):
    for args, error in [
        ([str(tmp_path / "none.jsonl")], "No such file"),
        ([write_rows(tmp_path / "empty.jsonl", [])], "no row in it"),
        ([write_rows(tmp_path / "a.jsonl", [{"x": "y"}]), "--row", "1"], "no column"),
        ([write_rows(tmp_path / "b.jsonl", [{"text": "y"}]), "--tokenizer", "/nowhere"], "no such folder"),
    ]:
        assert main(["view", *args, "--out", str(tmp_path / "p.html"), "--no-open"]) == 2
        assert error in capsys.readouterr().err


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        main(["view", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 110


def test_canonical_text_and_loose_text_have_the_same_lanes():
    text = (TRACES / "valid" / "one_line_and_small_think.txt").read_text()
    loose, canonical = text_tokens(text), text_tokens(render(parse(text)))
    assert loose["positions"] == canonical["positions"] and loose["nodes"] == canonical["nodes"]
