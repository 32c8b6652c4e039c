"""Sources: the columns of the public sets and plain ones, from JSONL, parquet and the hub; errors name the place."""

from __future__ import annotations

import json
import pickle

import pytest

from mvtrain.data.sources import Record, RowError, read_records

PARALLEL = "<Think>\nA\n<Parallel>\n...</Parallel>\n</Think>"
PUBLIC = {
    "question": "How much?",
    "deepseek_thinking_trajectory": "  Let me see.\nTwo. ",
    "deepseek_thinking_trajectory_parallel": PARALLEL,
    "deepseek_thinking_trajectory_sequential": "Let me look.",
    "deepseek_attempt": "2",
    "solution": "unused",
}
CHATML = (
    "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    "<|im_start|>user\nHow much?{suffix}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"
)


@pytest.fixture(params=["jsonl", "parquet"])
def write(request, tmp_path):
    """Writes rows as a file of either format and gives its path."""

    def write_rows(*rows):
        path = tmp_path / f"rows.{request.param}"
        if request.param == "jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        else:
            arrow = pytest.importorskip("pyarrow")
            parquet = pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(list(rows)), path)
        return path

    return write_rows


def test_public_columns_as_parallel(write):
    path = write(PUBLIC, {**PUBLIC, "question": "Et « ça » ?"})
    records = list(read_records(path, "parallel"))
    assert [record.question for record in records] == ["How much?", "Et « ça » ?"]
    assert records[0] == Record("How much?", PARALLEL, "2", "parallel", records[0].where)
    assert [record.where.rpartition("rows.")[2].partition(" ")[2] for record in records] == ["row 1", "row 2"]


def test_public_columns_as_sequential_get_think_tags(write):
    path = write(PUBLIC)
    record = next(read_records(path, "sequential"))
    assert (record.trajectory, record.answer) == ("<Think>\nLet me see.\nTwo.\n</Think>", "2")
    only_derived = {key: value for key, value in PUBLIC.items() if key != "deepseek_thinking_trajectory"}
    assert next(read_records(write(only_derived), "sequential")).trajectory == "<Think>\nLet me look.\n</Think>"
    named = read_records(write(PUBLIC), "sequential", trajectory_column="deepseek_thinking_trajectory_sequential")
    assert next(named).trajectory == "<Think>\nLet me look.\n</Think>"
    tagged = {**PUBLIC, "deepseek_thinking_trajectory": "<think>\nYes.\n</think>"}
    assert next(read_records(write(tagged), "sequential")).trajectory == "<think>\nYes.\n</think>"


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_plain_columns_are_the_whole_turn(write, kind):
    path = write({"question": "How much?", "response": PARALLEL + "\n\nTwo.", "answer": "a reference, not used"})
    record = next(read_records(path, kind))
    assert (record.trajectory, record.answer, record.kind, record.prompt) == (PARALLEL + "\n\nTwo.", None, kind, None)


def test_ready_chatml_is_cut_before_its_last_turn(write):
    suffixes = (" Think step by step and in parallel before answering.", " Think step by step before answering.", "")
    texts = [CHATML.format(suffix=s, response=r) for s, r in zip(suffixes, ("Two.", "Two.", PARALLEL), strict=True)]
    records = list(read_records(write(*({**PUBLIC, "text": text} for text in texts)), "sequential"))
    for record, text in zip(records, texts, strict=True):
        assert f"{record.prompt}{record.trajectory}<|im_end|>\n" == text
        assert record.prompt.endswith("<|im_start|>assistant\n") and record.question == "" and record.answer is None
    assert [record.kind for record in records] == ["parallel", "sequential", "parallel"]
    assert next(read_records(write({**PUBLIC, "text": texts[0]}), "parallel", style="trajectory")).answer == "2"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Just words.", "has no turn '<|im_start|>assistant"),
        ("<|im_start|>assistant\nHello", "does not end in <|im_end|>"),
        ("<|im_start|>assistant\n \n<|im_end|>", "is empty"),
        ("<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi", "goes on after"),
    ],
)
def test_faulty_chatml(write, text, fault):
    with pytest.raises(RowError) as caught:
        list(read_records(write({"text": text}), "parallel"))
    assert "row 1: column 'text'" in str(caught.value) and fault in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "fault"),
    [
        ({"question": " \n"}, "column 'question' is empty; expected text"),
        ({"question": None}, "column 'question' is None; expected text"),
        ({"deepseek_thinking_trajectory_parallel": ""}, "column 'deepseek_thinking_trajectory_parallel' is empty"),
        ({"deepseek_attempt": None}, "column 'deepseek_attempt' is None"),
    ],
)
def test_errors_name_file_row_and_column(write, bad, fault):
    path = write(PUBLIC, {**PUBLIC, **bad}, PUBLIC)
    with pytest.raises(RowError) as caught:
        list(read_records(path, "parallel"))
    assert path.name in str(caught.value) and "row 2: " in str(caught.value) and fault in str(caught.value)
    records = list(read_records(path, "parallel", bad_rows="yield"))
    assert [type(record) for record in records] == [Record, RowError, Record]
    assert str(pickle.loads(pickle.dumps(records[1]))) == str(caught.value)


def test_missing_and_non_string_fields_of_jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": "a", "response": "b"}, {"question": "a"}, {"question": 7, "response": "b"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, missing, number = read_records(path, "parallel", bad_rows="yield")
    assert "row 2: column 'response' is missing; the row has question" in str(missing)
    assert "row 3: column 'question' is 7; expected text" in str(number)
    assert missing.reason == "column 'response' missing" and number.reason == "column 'question' not text"


def test_lines_that_are_no_json_object_are_yielded_in_their_place(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('oops\n{"question": "a", "response": "b"}\n[1]\n')
    first, good, last = read_records(path, "parallel", bad_rows="yield")
    assert good.question == "a"
    assert "row 1: column 1: not JSON" in str(first) and first.reason == "not a JSON object"
    assert "row 3: expected a JSON object, found list" in str(last)
    with pytest.raises(RowError, match="row 1: column 1: not JSON"):
        list(read_records(path, "parallel"))


def test_unknown_columns_kinds_styles_and_files(write, tmp_path):
    path = write({"problem": "a", "solution": "b"})
    with pytest.raises(ValueError, match="no column text or deepseek_thinking_trajectory_parallel or response; it has"):
        next(read_records(path, "parallel"))
    with pytest.raises(ValueError, match="no column chain; it has problem, solution"):
        next(read_records(path, "parallel", trajectory_column="chain"))
    with pytest.raises(ValueError, match="unknown kind 'both'; choose one of parallel, sequential"):
        next(read_records(path, "both"))
    with pytest.raises(ValueError, match="unknown style 'plain'"):
        next(read_records(path, "parallel", style="plain"))
    with pytest.raises((FileNotFoundError, ValueError), match=r"nowhere\.jsonl"):
        next(read_records(tmp_path / "nowhere.jsonl", "parallel"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no rows"):
        next(read_records(empty, "parallel"))


@pytest.mark.parametrize(("source", "split"), [("team/chains", "train"), ("team/chains:test[:2]", "test[:2]")])
def test_a_hub_name_is_loaded_with_its_split(monkeypatch, source, split):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([PUBLIC, {**PUBLIC, "question": ""}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    good, bad = read_records(source, "parallel", bad_rows="yield")
    assert asked == [("team/chains", split)]
    assert good.where == f"team/chains ({split}) row 1" and good.answer == "2"
    assert str(bad) == f"team/chains ({split}) row 2: column 'question' is empty; expected text"


def test_the_hub_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"mvtrain\[train\]"):
        next(read_records("team/chains", "parallel"))
