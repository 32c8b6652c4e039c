"""`mvtrain check` through the command line, and the readers and statistics under it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvtrain.cli import main
from mvtrain.data.statistics import Statistics, count_words, critical_path, token_counter
from mvtrain.data.trace_files import Row, read_rows, trace_column, trace_span
from mvtrain.grammar import parse, render
from mvtrain.layout import Layout, TagIds
from tests.tiny import tiny_tokenizer

TRACES = Path(__file__).parent / "traces"
REAL = Path(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"
GOOD = (TRACES / "valid" / "two_paths.txt").read_text()
NESTED = (TRACES / "valid" / "nested.txt").read_text()
LOOSE = (TRACES / "valid" / "one_line_and_small_think.txt").read_text()
BAD = (TRACES / "invalid" / "path_not_closed.txt").read_text()


def write_jsonl(path: Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# The command


def test_good_file(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": GOOD}, {"response": NESTED}])
    assert main(["check", file]) == 0
    out = capsys.readouterr().out
    assert "2 rows, 0 bad" in out and "good rows: 2, with blocks: 2" in out


def test_bad_row_is_reported_with_place_and_excerpt(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": GOOD}, {"response": BAD}])
    assert main(["check", file]) == 1
    out = capsys.readouterr().out
    assert out.startswith(
        f"{file} row 2: line 14, column 1: <Path> opens, but path 1 is still open\n"
        "    14 | <Path>\n"
        "         ^ expected </Path> of path 1 (opened on line 12, column 1)\n"
    )
    assert "2 rows, 1 bad" in out


def test_markup_of_a_terminal_library_in_a_trace_is_printed_as_it_is(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": "[bold]x[/bold] [0, 1] </Path>"}])
    assert main(["check", file]) == 1
    assert "    1 | [bold]x[/bold] [0, 1] </Path>\n" in capsys.readouterr().out


def test_many_problems_of_a_row_are_cut_short(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": "</Path>\n" * 12}])
    assert main(["check", file]) == 1
    out = capsys.readouterr().out
    assert out.count("</Path> closes nothing") == 5 and "row 1: 7 more problems (--json shows all)" in out
    main(["check", file, "--json"])
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 12


def test_json_report(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": GOOD}, {"response": BAD}, {"response": NESTED}])
    assert main(["check", file, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["bad_rows"], report["fixed"]) == (3, 1, None)
    (problem,) = report["problems"]
    assert (problem["file"], problem["row"], problem["line"], problem["column"]) == (file, 2, 14, 1)
    assert problem["expected"] == "</Path> of path 1 (opened on line 12, column 1)"
    statistics = report["statistics"]
    assert (statistics["unit"], statistics["rows"], statistics["rows_with_blocks"]) == ("words", 2, 2)
    assert statistics["blocks_per_row"] == {"mean": 1.5, "min": 1, "max": 2, "sum": 3}
    assert statistics["paths_per_block"] == {"mean": 2, "min": 2, "max": 2, "sum": 6}
    assert statistics["depth"]["max"] == 2


def test_fix_writes_canonical_text_and_keeps_the_other_columns(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": 7, "response": LOOSE}, {"id": 8, "response": BAD}])
    out = tmp_path / "fixed.jsonl"
    assert main(["check", file, "--fix", str(out)]) == 1
    assert f"{out}: 1 rows written, 1 bad rows left out" in capsys.readouterr().out
    (row,) = read_rows(out)
    assert row.fields == {"id": 7, "response": render(parse(LOOSE))} and row.fields["response"] != LOOSE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "fixed.jsonl"]
    assert main(["check", str(out)]) == 0


def test_fix_never_touches_an_input(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": LOOSE}])
    before = Path(file).read_bytes()
    for name, out in (("a.jsonl", file), (file, f"../{tmp_path.name}/a.jsonl")):
        assert main(["check", name, "--fix", out]) == 2
        assert "this is an input" in capsys.readouterr().err
    assert Path(file).read_bytes() == before


def test_fix_leaves_nothing_behind_when_a_later_file_is_broken(tmp_path, capsys):
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": GOOD}])
    (tmp_path / "b.jsonl").write_text('{"other": "no column with a trace"}')
    assert main(["check", file, str(tmp_path / "b.jsonl"), "--fix", str(tmp_path / "out.jsonl")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_rows_without_a_trace_are_bad(tmp_path, capsys):
    rows = [{"response": GOOD}, {"id": 1}, {"response": None}, {"response": 3}, {"response": " \n"}]
    assert main(["check", write_jsonl(tmp_path / "a.jsonl", rows), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [(p["row"], p["message"]) for p in report["problems"]] == [
        (2, "column 'response' is missing"),
        (3, "column 'response' is missing"),
        (4, "column 'response' holds int"),
        (5, "column 'response' is empty"),
    ]


def test_conversation_is_checked_in_the_assistant_turn_only(tmp_path, capsys):
    def conversation(turn):
        user = "<|im_start|>user\nWrite </Path> for me.<|im_end|>\n"
        return {"text": f"{user}<|im_start|>assistant\n{turn}<|im_end|>\n"}

    file = write_jsonl(tmp_path / "a.jsonl", [conversation(LOOSE), conversation(BAD)])
    assert main(["check", file, "--fix", str(tmp_path / "out.jsonl"), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["row"], problem["line"]) == (2, 14)
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert row.fields == conversation(render(parse(LOOSE)))


@pytest.mark.parametrize("turns", [0, 2])
def test_conversation_without_one_assistant_turn_is_bad(tmp_path, capsys, turns):
    text = "<|im_start|>user\nq<|im_end|>\n" + "<|im_start|>assistant\na<|im_end|>\n" * turns
    assert main(["check", write_jsonl(tmp_path / "a.jsonl", [{"text": text}])]) == 1
    assert f"a conversation with {turns} assistant turns; expected one" in capsys.readouterr().out


def test_text_files(capsys):
    assert main(["check", *map(str, sorted((TRACES / "valid").glob("*.txt")))]) == 0
    invalid = sorted((TRACES / "invalid").glob("*.txt"))
    assert main(["check", *map(str, invalid)]) == 1
    assert f"{len(invalid)} rows, {len(invalid)} bad" in capsys.readouterr().out


def test_lines_that_are_no_json_object_are_bad_rows_like_others(tmp_path, capsys):
    file, fixed = tmp_path / "a.jsonl", tmp_path / "fixed.jsonl"
    file.write_text('{"response": }\n\n["x"]\n{"response": "good"}\n')
    assert main(["check", str(file), "--fix", str(fixed)]) == 1
    out = capsys.readouterr().out
    assert "row 1" in out and "column 14: not JSON" in out
    assert "row 3" in out and "expected a JSON object, found list" in out
    assert "3 rows, 2 bad" in out
    assert [row.fields for row in read_rows(fixed)] == [{"response": "good"}]


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ('{"id": 1, "output": "x"}\n', [], "name one with --column: id, output"),
        ('{"id": 1, "output": "x"}\n', ["--column", "oputput"], "no column 'oputput'; the columns are: id, output"),
        ('{"response": "x"}\n', ["--tokenizer", "/no/such"], "--tokenizer /no/such: no such folder"),
        ('{"response": "x"}\n', ["--fix", "out.parquet"], "name that ends in .jsonl"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(tmp_path, capsys, content, arguments, message):
    (tmp_path / "a.jsonl").write_text(content)
    assert main(["check", str(tmp_path / "a.jsonl"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_other_files_that_cannot_be_read(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "a.parquet").write_text("nothing")
    for name, message in {
        "a.txt": "byte 4 is not UTF-8",
        "a.json": "name it .jsonl",
        "a.parquet": "not a readable parquet file",
        "none.jsonl": "No such file",
    }.items():
        assert main(["check", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_parquet(tmp_path, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    column = "deepseek_thinking_trajectory_parallel"
    parquet.write_table(pyarrow.table({"question": ["a", "b"], column: [GOOD, BAD]}), file)
    assert [row.number for row in read_rows(file)] == [1, 2]
    assert main(["check", str(file)]) == 1
    assert "row 2: line 14, column 1" in capsys.readouterr().out


def test_parquet_without_pyarrow_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    assert main(["check", str(tmp_path / "a.parquet")]) == 2
    assert "pip install 'mvtrain[train]'" in capsys.readouterr().err


def test_check_imports_no_torch():
    code = f"import sys; from mvtrain.cli import main; main(['check', {str(TRACES / 'valid' / 'nested.txt')!r}]); "
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


def test_tokens_of_a_tokenizer(tmp_path, capsys):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = write_jsonl(tmp_path / "a.jsonl", [{"response": NESTED}])
    assert main(["check", file, "--tokenizer", str(tmp_path / "tokenizer"), "--json"]) == 0
    statistics = json.loads(capsys.readouterr().out)["statistics"]
    assert statistics["unit"] == "tokens"
    assert statistics["tokens"]["sum"] == len(tokenizer(NESTED, add_special_tokens=False)["input_ids"])


def test_output_in_the_documentation(capsys, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "trace-format.md").read_text()
    ((command, output),) = re.findall(r"```console\n\$ mvtrain (.*)\n([^`]*)```", page)
    monkeypatch.chdir(TRACES)
    assert main(command.split()) == 1
    assert capsys.readouterr().out == output


# Readers


def test_columns_are_tried_in_order():
    assert trace_column(Row("f", 1, {"text": "", "response": ""})) == "response"
    assert trace_column(Row("f", 1, {"trace": "", "text": ""})) == "text"
    assert trace_column(Row("f", 1, {"trace": "", "text": ""}), "trace") == "trace"


def test_row_number_is_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": 1}\n\n{"a": "\\u2028 \u2028"}', encoding="utf-8")
    assert [(row.number, row.fields) for row in read_rows(tmp_path / "a.jsonl")] == [
        (1, {"a": 1}),
        (3, {"a": "\u2028 \u2028"}),
    ]


def test_span_of_a_plain_text_is_all_of_it():
    assert trace_span("abc") == (0, 3)
    text = "<|im_start|>assistant\nabc"
    assert text[slice(*trace_span(text))] == "abc"


# Statistics


def test_words():
    assert count_words(["<Path>\n1: a_b + 3.", "", "</think>"]) == [7, 0, 1]


def test_critical_path_by_hand():
    text = (
        "a a <Parallel><Goal><Outline>1: x</Outline><Outline>2: y</Outline></Goal>"  # 2 + 2 + 5 + 5 + 1 = 15
        "<Path>1: b b b</Path><Path>2: c</Path>"  # 7 and 5
        "<Conclusion>d</Conclusion></Parallel> e"  # 3 + 1 + 1 = 5
    )
    assert critical_path(text) == (15 + 7 + 5 + 5, 15 + 7 + 5)
    assert critical_path("no block here") == (3, 3)


@pytest.mark.parametrize("name", ["two_paths", "nested", "blocks_without_think", "one_line_and_small_think"])
def test_critical_path_is_what_the_layout_says(name):
    """One byte a token and each tag a token: the last position of the layout, plus one, is the critical path."""
    text = render(parse((TRACES / "valid" / f"{name}.txt").read_text()))
    tokenizer = tiny_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    positions = Layout.from_ids(ids, TagIds.from_tokenizer(tokenizer)).position_ids
    assert critical_path(text, token_counter(tokenizer)) == (len(ids), int(positions[-1]) + 1)
    assert int(positions[-1]) + 1 < len(ids)  # control: something did run in parallel


def test_statistics_of_no_rows():
    assert Statistics().as_dict()["tokens"] == {"mean": 0, "min": 0, "max": 0, "sum": 0}


def test_deep_nesting(tmp_path, capsys):
    text = ""
    for level in range(600, 0, -1):
        label = ".".join(["1"] * level)
        text = f"<Parallel><Goal><Outline>{label}: a</Outline></Goal><Path>{label}: b{text}</Path>" + (
            "<Conclusion>c</Conclusion></Parallel>"
        )
    assert main(["check", write_jsonl(tmp_path / "a.jsonl", [{"response": text}]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["statistics"]["depth"]["max"] == 600


def test_real_responses(capsys):
    if not REAL.exists():
        pytest.skip("real traces are not at hand (../shared/data/traces.jsonl)")
    start = time.perf_counter()
    assert main(["check", str(REAL), "--json"]) == 1
    assert time.perf_counter() - start < 5
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["bad_rows"]) == (67, 21)
    assert report["statistics"]["rows_with_blocks"] == 29
    assert report["statistics"]["parallelism"]["min"] == 1 < report["statistics"]["parallelism"]["max"]
