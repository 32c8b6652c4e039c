"""`mvtrain prepare` through the command line: imported files train, the mixture is the curriculum's, overlaps show."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest

from mvtrain.cli import main
from mvtrain.commands import prepare_import, prepare_overlap
from mvtrain.commands.prepare_mixture import _LOWER_CASE_THINK
from mvtrain.data import build_examples, phases, read_records
from mvtrain.data.importers import FORMATS
from mvtrain.overlap import find_overlaps
from tests.tiny import tiny_tokenizer

SAMPLES = Path(__file__).parent / "import_samples"
COLUMNS = [
    "id",
    "question",
    "deepseek_thinking_trajectory_parallel",
    "deepseek_attempt",
    "answer",
    "source",
    "outlines",
]
THREADS = (
    "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
    "<Thread>1: A</Thread><Thread>2: B</Thread></Parallel>"
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def prepare(capsys, *arguments):
    """(exit status, what `--json` printed)."""
    status = main(["prepare", *map(str, arguments), "--json"])
    printed = capsys.readouterr()
    assert printed.err == ""
    return status, json.loads(printed.out)


def fails(capsys, *arguments):
    """The error of a command that ends with status 2."""
    assert main(["prepare", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


# Import


@pytest.mark.parametrize("name", FORMATS)
def test_an_imported_file_passes_the_check_and_trains(name, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    status, summary = prepare(capsys, "--from", name, SAMPLES / f"{name}.jsonl", "--out", out)
    assert status == 0 and summary["rows"] == summary["written"] + summary["rejected"] and summary["rejected"] == 1
    rows = read(out)
    assert len(rows) == summary["written"] and all(list(row) == COLUMNS for row in rows)
    assert main(["check", str(out)]) == 0
    examples, report = build_examples(read_records(out, "parallel"), tiny_tokenizer(), progress=False)
    assert report.num_kept == len(rows) and report.kinds == {"parallel": len(rows)}
    text = tiny_tokenizer().decode(examples[0].input_ids[examples[0].prompt_length :])
    assert rows[0]["deepseek_thinking_trajectory_parallel"] in text and rows[0]["deepseek_attempt"] in text
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.rejected.jsonl"}


def test_rejected_rows_stand_in_a_file_with_number_and_reasons(tmp_path, capsys):
    source = tmp_path / "in.jsonl"
    good = {"id": "x", "question": "Q", "response": f"{THREADS} 7"}
    bad = {"id": 5, "question": "<Path>", "response": f"{THREADS}", "more": [1]}
    source.write_text(
        "\n".join([json.dumps(good), "", "{broken", json.dumps(bad), "[1]", json.dumps(good | {"id": 4})])
    )
    out = tmp_path / "out.jsonl"
    status, summary = prepare(capsys, "--from", "threadweaver", source, "--out", out)
    rejected = read(f"{out}.rejected.jsonl")
    assert [(row["row"], [reason["reason"] for reason in row["reasons"]]) for row in rejected] == [
        (3, ["not a JSON object"]),
        (4, ["a tag in the question", "nothing follows the reasoning, and no answer is known"]),
        (5, ["not a JSON object"]),
    ]
    assert rejected[1]["fields"] == bad and rejected[1]["file"] == str(source)
    assert summary["reasons"] == {
        "not a JSON object": 2,
        "a tag in the question": 1,
        "nothing follows the reasoning, and no answer is known": 1,
    }
    assert (status, summary["written"], summary["rejected"]) == (0, 2, 3)
    assert [(row["id"], row["source"]) for row in read(out)] == [
        ("x", "threadweaver: in.jsonl row 1"),
        ("threadweaver-4", "threadweaver: in.jsonl row 6"),
    ]


def test_the_summary_for_people(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(["prepare", "--from", "npr", str(SAMPLES / "npr.jsonl"), "--out", str(out)]) == 0
    assert capsys.readouterr().out == (
        f"{out}: 1 of 2 rows written\nblocks: 2, without a conclusion: 0, with one path: 1\n"
        f"{out}.rejected.jsonl: 1 left out\n"
        "  1 a tag in the question\n  1 a path that no outline names\n"
    )


def test_a_rejected_file_of_an_earlier_run_does_not_stay(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert prepare(capsys, "--from", "npr", SAMPLES / "npr.jsonl", "--out", out)[0] == 0
    assert Path(f"{out}.rejected.jsonl").exists()
    source = write(tmp_path / "in.jsonl", [{"question": "Q", "response": f"{THREADS} 7"}])
    status, summary = prepare(capsys, "--from", "threadweaver", source, "--out", out)
    assert (status, summary["rejected_file"]) == (0, None) and not Path(f"{out}.rejected.jsonl").exists()


def test_without_any_good_row_the_status_is_1(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": "Q", "response": "no block"}])
    status, summary = prepare(capsys, "--from", "npr", source, "--out", tmp_path / "out.jsonl")
    assert (status, summary["written"], summary["reasons"]) == (1, 0, {"no parallel block": 1})


def test_parquet_with_nested_columns(tmp_path, capsys):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "in.parquet"
    parquet.write_table(arrow.Table.from_pylist(read(SAMPLES / "parallel-r1.jsonl")), path)
    for source in (path, SAMPLES / "parallel-r1.jsonl"):
        assert prepare(capsys, "--from", "parallel-r1", source, "--out", tmp_path / f"{source.suffix}.jsonl")[0] == 0
    from_parquet, from_lines = (read(tmp_path / f"{suffix}.jsonl") for suffix in (".parquet", ".jsonl"))
    assert [row | {"source": ""} for row in from_parquet] == [row | {"source": ""} for row in from_lines]


def test_named_columns(tmp_path, capsys):
    row = {"q": {"text": "Q"}, "r": f"{THREADS} 7", "a": 7, "question": "other", "response": "other"}
    names = ["--question-column", "q.text", "--response-column", "r", "--answer-column", "a"]
    source = write(tmp_path / "in.jsonl", [row])
    assert prepare(capsys, "--from", "threadweaver", source, "--out", tmp_path / "out.jsonl", *names)[0] == 0
    (found,) = read(tmp_path / "out.jsonl")
    assert (found["question"], found["deepseek_attempt"], found["answer"]) == ("Q", "7", "7")
    error = fails(capsys, "--from", "npr", source, "--out", tmp_path / "o.jsonl", "--answer-column", "b")
    assert "in.jsonl row 1: no column b; name one with --answer-column: q, r, a, question, response" in error


def test_mistakes_leave_no_file(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"a": 1}])
    empty = write(tmp_path / "empty.jsonl", [])
    before = sorted(tmp_path.iterdir())
    out = tmp_path / "out.jsonl"
    assert "no column question or" in fails(capsys, "--from", "npr", source, "--out", out)
    assert "has no rows" in fails(capsys, "--from", "npr", empty, "--out", out)
    assert "No such file" in fails(capsys, "--from", "npr", tmp_path / "none.jsonl", "--out", out)
    assert "is an input" in fails(capsys, "--from", "npr", source, "--out", source)
    assert "ends in .jsonl" in fails(capsys, "--from", "npr", source, "--out", tmp_path / "out.json")
    assert "--out FILE.jsonl is missing" in fails(capsys, "--from", "npr", source)
    assert "needs the file to read" in fails(capsys, "--from", "npr", "--out", out)
    assert ".parquet are read" in fails(capsys, "--from", "npr", tmp_path / "a.txt", "--out", out)
    assert "--drop-overlap needs --overlap" in fails(capsys, "--from", "npr", source, "--out", out, "--drop-overlap")
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_in_the_middle_leaves_the_earlier_output_as_it_was(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.jsonl"
    out.write_text("earlier\n")
    rows = [{"question": "Q", "response": f"{THREADS} 7"}] * 3
    source = write(tmp_path / "in.jsonl", rows)
    real, calls = prepare_import.convert_row, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(prepare_import, "convert_row", interrupted)
    assert main(["prepare", "--from", "threadweaver", source, "--out", str(out)]) == 130
    assert out.read_text() == "earlier\n" and {p.name for p in tmp_path.iterdir()} == {"out.jsonl", "in.jsonl"}


def test_memory_does_not_grow_with_the_file(tmp_path, capsys):
    def peak(count):
        source = tmp_path / f"{count}.jsonl"
        with open(source, "w") as file:
            for number in range(count):
                response = f"{THREADS} {number}" if number % 2 else "no block " * 100
                file.write(json.dumps({"question": "Q", "response": response}) + "\n")
        tracemalloc.start()
        prepare(capsys, "--from", "threadweaver", source, "--out", tmp_path / "out.jsonl")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)  # imports
    assert peak(4000) < peak(400) + 200_000


def test_half_a_surrogate_pair_is_refused_and_the_row_is_kept(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": "Q \ud800", "response": f"{THREADS} é"}])
    status, summary = prepare(capsys, "--from", "threadweaver", source, "--out", tmp_path / "out.jsonl")
    assert (status, summary["reasons"]) == (1, {"text that is no valid Unicode": 1})
    (row,) = read(tmp_path / "out.jsonl.rejected.jsonl")
    assert row["fields"]["question"] == "Q \ud800"


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0 and len(text.splitlines()) <= 40
    assert all(name in text for name in FORMATS)


def test_synthetic_stays_a_command_of_its_own(tmp_path, capsys):
    out = tmp_path / "folder" / "s.jsonl"
    assert main(["prepare", "synthetic", str(out), "--count", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out == f"wrote 3 problems to {out}\n"
    assert [row["id"] for row in read(out)] == ["synthetic-5-0", "synthetic-5-1", "synthetic-5-2"]


# Mixture


def sequential_rows(count):
    return [
        {"question": f"s{i}?", "deepseek_thinking_trajectory": f"Chain {i}.", "deepseek_attempt": f"{i}"}
        for i in range(count)
    ]


def parallel_rows(count):
    trace = "<Parallel><Goal><Outline>1: x</Outline></Goal><Path>1: {}</Path><Conclusion>c</Conclusion></Parallel>"
    return [
        {
            "question": f"p{i}?",
            "deepseek_thinking_trajectory_parallel": f"<think>{trace.format(i)}</think>",
            "deepseek_attempt": f"Answer: {i}",
        }
        for i in range(count)
    ]


@pytest.fixture
def two_sets(tmp_path):
    return write(tmp_path / "s.jsonl", sequential_rows(25)), write(tmp_path / "p.jsonl", parallel_rows(13))


@pytest.mark.parametrize("options, seed", [([], 42), (["--seed", "7"], 7)])
def test_the_mixture_is_the_curriculum_member_by_member(two_sets, tmp_path, capsys, options, seed):
    out = tmp_path / "mixed.jsonl"
    status, summary = prepare(capsys, "--mixture", *two_sets, "--out", out, *options)
    order = phases(25, 13, seed=seed)
    expected = [(number, kind, f"{kind[0]}{index}?") for number, phase in enumerate(order, 1) for kind, index in phase]
    rows = read(out)
    assert [(row["phase"], row["kind"], row["question"]) for row in rows] == expected
    assert all(list(row) == ["phase", "kind", "question", "response"] for row in rows)
    assert (status, summary["written"], summary["seed"]) == (0, len(expected), seed)
    assert [sum(phase.values()) for phase in summary["phases"]] == [len(phase) for phase in order]
    assert {path.name for path in tmp_path.iterdir()} == {"s.jsonl", "p.jsonl", "mixed.jsonl"}


def test_seeds_differ(two_sets, tmp_path, capsys):
    for seed in (1, 2):
        prepare(capsys, "--mixture", *two_sets, "--out", tmp_path / f"{seed}.jsonl", "--seed", seed)
    assert read(tmp_path / "1.jsonl") != read(tmp_path / "2.jsonl")


def test_a_mixed_row_says_what_is_trained_on(two_sets, tmp_path, capsys):
    out = tmp_path / "mixed.jsonl"
    prepare(capsys, "--mixture", *two_sets, "--out", out)
    rows = {row["question"]: row for row in read(out)}
    assert rows["s3?"]["response"] == "<Think>\nChain 3.\n</Think>\n\nAnswer: 3"
    assert rows["p3?"]["response"].startswith("<Think><Parallel>")
    assert rows["p3?"]["response"].endswith("</Parallel></Think>\n\nAnswer: 3")


def test_the_examples_of_a_mixture_are_those_of_its_sources(two_sets, tmp_path, capsys):
    """Ids of plain rows, read kind by kind, and of ready text against the sources in the order of the phases."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "mixed.jsonl"
    assert prepare(capsys, "--mixture", *two_sets, "--out", out, "--chat", tmp_path / "tokenizer")[0] == 0
    sources = {
        kind: build_examples(read_records(path, kind), tokenizer, progress=False)[0]
        for kind, path in zip(("sequential", "parallel"), two_sets, strict=True)
    }
    expected = [(kind, sources[kind][index]) for phase in phases(25, 13) for kind, index in phase]
    chat, _ = build_examples(read_records(out, "parallel"), tokenizer, progress=False)
    assert len(chat) == len(expected)
    for example, (kind, source) in zip(chat, expected, strict=True):
        assert example.input_ids.tolist() == source.input_ids.tolist()
        assert (example.kind, example.prompt_length) == (kind, source.prompt_length)
    for kind in ("sequential", "parallel"):
        rows = [row for row in read(out) if row["kind"] == kind]
        path = write(tmp_path / f"{kind}.jsonl", [{k: row[k] for k in ("question", "response")} for row in rows])
        plain, _ = build_examples(read_records(path, kind), tokenizer, progress=False)
        wanted = [source.input_ids.tolist() for of, source in expected if of == kind]
        assert [example.input_ids.tolist() for example in plain] == wanted


def test_one_file_with_both_columns(tmp_path, capsys):
    source = tmp_path / "both.jsonl"
    main(["prepare", "synthetic", str(source), "--count", "10"])
    capsys.readouterr()
    out = tmp_path / "mixed.jsonl"
    status, summary = prepare(capsys, "--mixture", source, "--out", out)
    assert (status, summary["sequential"], summary["parallel"], summary["written"]) == (0, 10, 10, 80)
    questions = [row["question"] for row in read(source)]
    expected = [(kind, questions[index]) for phase in phases(10, 10) for kind, index in phase]
    assert [(row["kind"], row["question"]) for row in read(out)] == expected
    assert all(("<Parallel>" in row["response"]) == (row["kind"] == "parallel") for row in read(out))


def test_a_malformed_row_stops_the_mixture_or_is_left_out_before_rows_are_counted(two_sets, tmp_path, capsys):
    rows = parallel_rows(13)
    rows[4]["deepseek_thinking_trajectory_parallel"] = "<think><Path></think>"
    rows[6]["question"] = "What is <Path>?"
    del rows[8]["question"]
    broken = write(tmp_path / "p.jsonl", rows)
    out = tmp_path / "mixed.jsonl"
    error = main(["prepare", "--mixture", two_sets[0], broken, "--out", str(out)])
    assert error == 2 and "p.jsonl row 5: line 1, column" in capsys.readouterr().err and not out.exists()
    status, summary = prepare(capsys, "--mixture", two_sets[0], broken, "--out", out, "--malformed", "skip")
    assert (status, summary["parallel"], summary["rejected"]) == (0, 10, 3)
    assert [(row["row"], row["fields"]["kind"]) for row in read(f"{out}.rejected.jsonl")] == [
        (5, "parallel"), (7, "parallel"), (9, "parallel"),
    ]  # fmt: skip
    kept = [i for i in range(13) if i not in (4, 6, 8)]
    expected = [f"p{kept[i]}?" if kind == "parallel" else f"s{i}?" for phase in phases(25, 10) for kind, i in phase]
    assert [row["question"] for row in read(out)] == expected


def test_mistakes_of_a_mixture(two_sets, tmp_path, capsys):
    out = tmp_path / "mixed.jsonl"
    sequential, parallel = two_sets
    assert "reads two files" in fails(capsys, "--mixture", sequential, parallel, sequential, "--out", out)
    assert "has no column" in fails(capsys, "--mixture", sequential, "--out", out)
    assert "is an input" in fails(capsys, "--mixture", *two_sets, "--out", parallel)
    assert "no such folder" in fails(capsys, "--mixture", *two_sets, "--out", out, "--chat", tmp_path / "none")
    ready = write(tmp_path / "t.jsonl", [{"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>"}])
    assert "t.jsonl row 1: column 'text' is ready ChatML" in fails(capsys, "--mixture", ready, parallel, "--out", out)
    other = tiny_tokenizer()
    other.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    other.save_pretrained(tmp_path / "other")
    assert "column 'text' is ChatML" in fails(
        capsys, "--mixture", *two_sets, "--out", out, "--chat", tmp_path / "other"
    )
    tiny_tokenizer().save_pretrained(tmp_path / "chatml")
    ends = write(tmp_path / "e.jsonl", [{"question": "Q", "response": "A<|im_end|>"}])
    chat = ["--chat", tmp_path / "chatml"]
    assert "e.jsonl row 1" in fails(capsys, "--mixture", ends, parallel, "--out", out, *chat)
    assert not out.exists() and not list(tmp_path.glob("*.partial"))


def test_memory_does_not_grow_with_the_texts_of_a_mixture(tmp_path, capsys):
    def peak(count):
        rows = sequential_rows(count)
        for row in rows:
            row["deepseek_thinking_trajectory"] = "word " * 4000
        files = write(tmp_path / "s.jsonl", rows), write(tmp_path / "p.jsonl", parallel_rows(100))
        del rows, row
        tracemalloc.start()
        prepare(capsys, "--mixture", *files, "--out", tmp_path / "out.jsonl")
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few = peak(100)
    assert peak(500) < few + 2_000_000, "four hundred chains of 20 kB more, of which few are held at a time"


def test_the_trainer_writes_small_think_tags_the_same_way():
    from mvtrain.data import examples

    assert _LOWER_CASE_THINK == examples._LOWER_CASE_THINK


# Overlap

WORDS = " ".join(f"word{i}" for i in range(40))


@pytest.fixture
def task(tmp_path):
    rows = [{"id": "1", "question": WORDS, "answer": "1"}, {"id": "2", "question": "quite another " * 9, "answer": "2"}]
    return write(tmp_path / "bench.jsonl", rows)


def planted(count=30):
    """Every third question has 13 words of the problem, the others at most 12 in a row."""
    words = WORDS.split()
    return [" ".join(words[i % 20 :][: 13 if i % 3 == 0 else 12]) + f" and {i}" for i in range(count)]


def test_overlaps_of_an_import_are_reported_or_left_out(task, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": q, "response": f"{THREADS} 7"} for q in planted()])
    out = tmp_path / "out.jsonl"
    status, summary = prepare(capsys, "--from", "threadweaver", source, "--out", out, "--overlap", task)
    assert (status, summary["written"], summary["overlapping"]) == (0, 30, 10)
    (overlap,) = summary["overlap"]["overlaps"]
    assert overlap["problem"] == "bench/1" and overlap["num_rows"] == 10
    assert overlap["rows"] == [f"{source} row {i + 1}" for i in range(0, 30, 3)]

    dropping = ["--overlap", task, "--drop-overlap"]
    status, summary = prepare(capsys, "--from", "threadweaver", source, "--out", out, *dropping)
    assert (status, summary["written"], summary["rejected"], summary["overlapping"]) == (0, 20, 10, 10)
    rejected = read(f"{out}.rejected.jsonl")
    assert [row["row"] for row in rejected] == [i + 1 for i in range(0, 30, 3)]
    assert all(row["reasons"] == [{"reason": prepare_overlap.OVERLAP, "detail": "bench/1"}] for row in rejected)
    assert main(["evaluate", "overlap", str(out), "--task", task]) == 0
    assert main(["prepare", "--from", "threadweaver", source, "--out", str(out), *dropping]) == 0
    assert re.search(
        r"bench/1: .* in .*in.jsonl row 1, .*\n.*\nrows that overlap: 10\n$", capsys.readouterr().out, re.DOTALL
    )


def test_more_overlapping_rows_than_a_report_names_are_all_left_out(task, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": WORDS, "response": f"{THREADS} 7"}] * 50)
    arguments = ["--from", "threadweaver", source, "--out", tmp_path / "o.jsonl", "--overlap", task, "--drop-overlap"]
    status, summary = prepare(capsys, *arguments)
    assert (status, summary["written"], summary["rejected"]) == (1, 0, 50)


def test_the_report_is_that_of_the_whole_set(task):
    screen = prepare_overlap.search_for([task], None)
    rows = [(f"row {i}", {"question": question, "n": i}) for i, question in enumerate(planted())]
    for name, fields in rows:
        screen.read(name, prepare_overlap.row_text(fields))
    problems = [("bench/1", WORDS), ("bench/2", ("quite another " * 9).strip())]
    assert screen.report() == find_overlaps([(name, fields["question"]) for name, fields in rows], problems)


def test_overlaps_leave_the_mixture_before_its_phases_are_drawn(task, tmp_path, capsys):
    s, p = sequential_rows(20), parallel_rows(20)
    s[3]["question"] = p[5]["question"] = WORDS
    p[7]["deepseek_thinking_trajectory_parallel"] = p[7]["deepseek_thinking_trajectory_parallel"].replace("7", WORDS)
    files = write(tmp_path / "s.jsonl", s), write(tmp_path / "p.jsonl", p)
    out = tmp_path / "mixed.jsonl"
    status, summary = prepare(capsys, "--mixture", *files, "--out", out, "--overlap", task, "--drop-overlap")
    assert (status, summary["sequential"], summary["parallel"], summary["overlapping"]) == (0, 19, 18, 3)
    s_kept, p_kept = [i for i in range(20) if i != 3], [i for i in range(20) if i not in (5, 7)]
    expected = [
        f"p{p_kept[i]}?" if kind == "parallel" else f"s{s_kept[i]}?" for phase in phases(19, 18) for kind, i in phase
    ]
    assert [row["question"] for row in read(out)] == expected
    assert [(row["row"], row["fields"]["kind"]) for row in read(f"{out}.rejected.jsonl")] == [
        (4, "sequential"), (6, "parallel"), (8, "parallel"),
    ]  # fmt: skip
    assert main(["evaluate", "overlap", str(out), "--task", task]) == 0
    capsys.readouterr()
    status, summary = prepare(capsys, "--mixture", *files, "--out", out, "--overlap", task)
    assert (summary["parallel"], summary["overlapping"], summary["rejected"]) == (20, 3, 0)


def test_an_unknown_task_is_an_error_before_anything_is_written(tmp_path, capsys):
    source = SAMPLES / "npr.jsonl"
    error = fails(capsys, "--from", "npr", source, "--out", tmp_path / "o.jsonl", "--overlap", "nonsense")
    assert "nonsense" in error and not list(tmp_path.iterdir())
