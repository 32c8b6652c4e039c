"""Problems by name and from files: what is read, what is asked, and what a user's mistake looks like."""

from __future__ import annotations

import builtins
import collections
import configparser
import csv
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvtrain.evaluate.problem_files import EXTRA
from mvtrain.evaluate.records import Problem
from mvtrain.evaluate.tasks import (
    CHOICE_INSTRUCTION,
    TASKS,
    ask,
    chosen_option,
    fingerprint,
    load_task,
    without_options,
)

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "data" / "eval"
needs_real = pytest.mark.skipif(
    not REAL.exists(), reason="no evaluation sets beside the checkout (../shared/data/eval)"
)


def write(path: Path, *rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def gpqa_rows(count: int = 198) -> list[dict]:
    """Rows with the columns of the published file, written for this test."""
    wrong = {f"Incorrect Answer {k}": f"{k} m/s\n" for k in (1, 2, 3)}
    return [
        {"Record ID": f"rec{i}", "Question": f"How fast is body {i},\nin a vacuum?",
         "Correct Answer": f" {i + 10} m/s ",
         **wrong, "High-level domain": "Physics", "Subdomain": "", "Explanation": "long, not kept"}
        for i in range(count)
    ]  # fmt: skip


@needs_real
@pytest.mark.parametrize("name", ["aime24", "aime25", "math500", "gsm8k"])
def test_local_copies_of_the_public_sets(name):
    """Every row against a reading of its own."""
    task = TASKS[name]
    rows = [json.loads(line) for line in (REAL / f"{task.file}.jsonl").read_text().splitlines()]
    problems = load_task(name, REAL)
    assert len(problems) == len(rows) == task.num_problems
    for number, (problem, row) in enumerate(zip(problems, rows, strict=True), 1):
        answer = row["answer"].split("#### ")[1] if name == "gsm8k" else row["answer"]
        assert (problem.task, problem.kind, problem.options) == (name, "math", ())
        assert problem.question == row.get("problem", row.get("question")).strip() and problem.answer == answer.strip()
        assert problem.id == str(row.get("unique_id", row.get("id", number)))
        assert problem.meta == ({"subject": row["subject"], "level": str(row["level"])} if name == "math500" else {})
    assert load_task(name, REAL, limit=3) == problems[:3]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_gpqa_as_downloaded(tmp_path, suffix):
    rows, path = gpqa_rows(), tmp_path / f"gpqa_diamond.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif suffix == "jsonl":
        write(path, *rows)
    else:
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    problems = load_task("gpqa_diamond", tmp_path)
    assert len(problems) == 198
    assert problems[5] == Problem(
        "gpqa_diamond", "rec5", "How fast is body 5,\nin a vacuum?", "A", "choice",
        ("15 m/s", "1 m/s", "2 m/s", "3 m/s"), {"High-level domain": "Physics"},
    )  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_hub_is_asked_for_the_published_set(name, tmp_path, monkeypatch):
    """The arguments are checked and a local file answers, through the real library; the hub itself is not reached."""
    datasets = pytest.importorskip("datasets")
    expected = {
        "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
        "aime25": ("math-ai/aime25", None, "test"),
        "math500": ("HuggingFaceH4/MATH-500", None, "test"),
        "gpqa_diamond": ("Idavidrein/gpqa", "gpqa_diamond", "train"),
        "gsm8k": ("openai/gsm8k", "main", "test"),
    }
    count = TASKS[name].num_problems
    if name == "gpqa_diamond":
        rows = gpqa_rows()
    elif name == "gsm8k":
        rows = [{"question": f"{i} and 1?", "answer": f"Add.\n#### {i + 1}"} for i in range(count)]
    else:
        own = {"unique_id" if name == "math500" else "id": "p{}", "subject": "Algebra", "level": 2}
        rows = [
            {"problem": f"{i} and 1?", "answer": str(i + 1)} | {k: v.format(i) if k in ("id", "unique_id") else v
                                                                for k, v in own.items()}
            for i in range(count)
        ]  # fmt: skip
    file, calls, real = write(tmp_path / "rows.jsonl", *rows), [], datasets.load_dataset

    def load_dataset(path, config=None, *, split):
        calls.append((path, config, split))
        return real("json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = load_task(name, limit=count)
    assert calls == [expected[name]] and len(problems) == count
    assert problems[1].answer == ("A" if name == "gpqa_diamond" else "2")
    write(file, *rows[1:])
    with pytest.raises(ValueError, match=f"has {count - 1} problems; {name} has {count}"):
        load_task(name)


def test_what_to_do_when_the_hub_does_not_give_a_set(monkeypatch):
    datasets = pytest.importorskip("datasets")
    from datasets.exceptions import DatasetNotFoundError

    def fails(error):
        def load_dataset(*args, **kwargs):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    fails(DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub."))
    with pytest.raises(
        OSError, match=r"gated dataset.*accept the terms at https://huggingface.co/datasets/Idavidrein/gpqa"
    ):
        load_task("gpqa_diamond")
    fails(DatasetNotFoundError("Dataset 'openai/gsm8k' doesn't exist on the Hub or cannot be accessed."))
    with pytest.raises(OSError, match=r"exist on the Hub.*--data-dir") as caught:
        load_task("gsm8k")
    assert "login" not in str(caught.value)


def test_without_a_network_the_error_names_a_way_out():
    """The real library, told to stay offline."""
    pytest.importorskip("datasets")
    code = "from mvtrain.evaluate.tasks import load_task\ntry: load_task('math500')\nexcept OSError as e: print(e)"
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PATH": "", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)
    assert re.search(r"math500 from the hub: the hub cannot be reached .*; give --data-dir", run.stdout), run.stderr


def test_the_extra_that_an_error_names_has_the_package(monkeypatch):
    imported = builtins.__import__

    def without_datasets(name, *args, **kwargs):
        if name.split(".")[0] == "datasets":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_datasets)
    with pytest.raises(ImportError, match=re.escape(f"pip install '{EXTRA}'")):
        load_task("math500")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "datasets" in setup["options.extras_require"][EXTRA[len("mvtrain[") : -1]]


def test_a_file_of_any_problems(tmp_path):
    path = write(
        tmp_path / "mine.jsonl",
        {"question": " 3 + 4? ", "answer": 7, "id": 12, "level": 3, "subject": "sums", "solution": "count"},
        "",
        {"problem": "half?", "answer": 0.5, "unique_id": "h", "note": "x" * 101, "tags": ["a"], "page": None},
        {"prompt": "How many?", "answer": "8 + 10 = 18\n#### 18"},
        {"question": "Whole?", "answer": 2.0, "id": None},
        {"question": "Which?", "answer": "b", "options": ["one", "two", "three"], "id": "c1"},
        {"question": "Which number?", "answer": 3, "options": [2, 3], "id": "c2"},
    )
    problems = load_task(path)
    assert [(p.task, p.id, p.question, p.answer) for p in problems[:4]] == [
        ("mine", "12", "3 + 4?", "7"),
        ("mine", "h", "half?", "0.5"),
        ("mine", "3", "How many?", "18"),
        ("mine", "4", "Whole?", "2"),
    ]
    assert problems[0].meta == {"level": "3", "subject": "sums"} and problems[1].meta == {}
    assert [(p.kind, p.options, p.answer) for p in problems[4:]] == [
        ("choice", ("two", "one", "three"), "A"),
        ("choice", ("3", "2"), "A"),
    ]
    assert load_task(str(path), data_dir="nowhere", limit=1) == problems[:1]


CHOICE = {"question": "Which?", "options": ["x", "y"], "id": "c"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, found list"),
        ({"answer": 1}, "line 2: the field `question` is missing; the row has answer"),
        ({"question": "q"}, "line 2: the field `answer` is missing"),
        ({"question": "q", "answer": None}, "line 2: the field `answer` is missing"),
        ({"question": "  ", "answer": 1}, "line 2: the field `question` is empty"),
        ({"question": "q", "answer": True}, "line 2: the field `answer` is True; expected text or a number"),
        ({"question": "q", "answer": [1]}, "line 2: the field `answer` is [1]; expected text or a number"),
        ('{"question": "q", "answer": NaN}', "line 2: the field `answer` is nan; expected text or a number"),
        ({"question": "q", "answer": "so ####"}, "line 2: the answer ends at ####"),
        ({"question": "q", "answer": 1, "id": "first"}, "line 2: the id 'first' is there already, in line 1"),
        ({"question": "open a <Path> here", "answer": 1}, "line 2: the question contains the tag <Path>"),
        ({**CHOICE, "answer": "z"}, "line 2: the answer 'z' is no option; expected a letter from A to B, or an option"),
        ({**CHOICE, "answer": "C"}, "line 2: the answer 'C' is no option"),
        ({**CHOICE, "answer": "A", "options": ["B", "A"]}, "line 2: the answer 'A' means the options A and B"),
        ({**CHOICE, "answer": "A", "options": ["y", "y"]}, "line 2: the right option 'y' is also a wrong one"),
        ({**CHOICE, "answer": "A", "options": ["y"]}, "line 2: the field `options` is ['y']; expected a list"),
        ({**CHOICE, "answer": "A", "options": ["y", "</Think>"]}, "line 2: the question contains the tag </Think>"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", {"question": "q", "answer": 1, "id": "first"}, line)
    with pytest.raises(ValueError) as caught:
        load_task(path)
    assert f"{path} {message}" in str(caught.value)


def test_files_that_hold_no_problems(tmp_path):
    with pytest.raises(ValueError, match="no problem in it"):
        load_task(write(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"no task of that name; tasks: aime24, aime25, math500"):
        load_task("aime23")
    with pytest.raises(ValueError, match="expected at least 1"):
        load_task("aime24", limit=0)
    with pytest.raises(ValueError, match=r"no local copy of gsm8k; expected one of gsm8k_test.jsonl"):
        load_task("gsm8k", tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": 1}\n')
    with pytest.raises(ValueError, match=r"latin.jsonl: not UTF-8"):
        load_task(tmp_path / "latin.jsonl")
    (tmp_path / "gpqa_diamond.csv").write_text("Question,Correct Answer\nq,a,b\n")
    with pytest.raises(ValueError, match=r"row 1: more fields than the heading"):
        load_task("gpqa_diamond", tmp_path)


SPEED = Problem("t", "p1", "How fast?\n\nA) not an option", "A", "choice", ("9 m/s", "8 m/s", "A) odd", "7 m/s"))


def test_how_a_choice_question_is_asked():
    question, reference = ask(SPEED, seed=3)
    stem, options, end = question.rsplit("\n\n", 2)
    assert (stem, end) == (SPEED.question, CHOICE_INSTRUCTION)
    texts = dict(line.split(") ", 1) for line in options.splitlines())
    assert list(texts) == ["A", "B", "C", "D"] and sorted(texts.values()) == sorted(SPEED.options)
    assert texts[reference] == "9 m/s"
    math = Problem("t", "1", "How many?", "7")
    assert ask(math, 3) == ("How many?", "7")


def test_the_order_of_options_is_the_same_in_every_process():
    imports = "from mvtrain.evaluate.records import Problem\nfrom mvtrain.evaluate.tasks import ask\n"
    code = f"{imports}print(ask({SPEED!r}, 5))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert outputs == {str(ask(SPEED, 5))}


def test_every_order_of_options_comes_equally_often():
    """Chi-square over the 24 orders: 23 degrees of freedom, so below 49.7 in 99.9% of draws; this draw is fixed."""
    orders = collections.Counter(ask(SPEED, seed)[0] for seed in range(2400))
    assert len(orders) == 24
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 49.7
    by_id = {ask(Problem("t", str(k), "q", "A", "choice", SPEED.options), 0)[1] for k in range(50)}
    assert by_id == set("ABCD")


@given(
    st.text(max_size=40),
    st.lists(st.text(alphabet="AB) .x", min_size=1).map(str.strip).filter(bool), min_size=2, max_size=6, unique=True),
    st.integers(),
)
def test_a_letter_leads_back_to_its_option(stem, options, seed):
    question, reference = ask(Problem("t", "1", stem, "A", "choice", tuple(options)), seed)
    letters = "ABCDEF"[: len(options)]
    assert chosen_option(question, reference) == options[0]
    assert sorted(chosen_option(question, f" ({letter.lower()}). ") for letter in letters) == sorted(options)
    assert without_options(question, reference) == ("\n".join([stem, *sorted(options)]), options[0])
    assert chosen_option(question, "Z") is None and chosen_option(question, "AB") is None
    assert chosen_option(stem, reference) is None or CHOICE_INSTRUCTION in stem


def test_the_fingerprint_follows_what_is_asked():
    problem = Problem("t", "1", "q", "7")
    assert fingerprint([problem]) == fingerprint([Problem("t", "1", "q", "7", meta={"level": "2"})])
    changed = [Problem("u", "1", "q", "7"), Problem("t", "2", "q", "7"), Problem("t", "1", "r", "7"),
               Problem("t", "1", "q", "8"), Problem("t", "1", "q", "7", "choice", ("7", "8"))]  # fmt: skip
    prints = {
        fingerprint(p) for p in ([problem], [], [problem, changed[0]], [changed[0], problem], *([c] for c in changed))
    }
    assert len(prints) == 9
    canonical = '[{"answer":"7","id":"1","kind":"math","options":[],"question":"q","task":"t"}]'
    assert fingerprint([problem]) == hashlib.sha256(canonical.encode()).hexdigest()
