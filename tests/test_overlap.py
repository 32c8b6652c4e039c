"""Evaluation problems in training text: planted ones are found, near misses are not, and rows are read once."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.overlap import LISTED_ROWS, describe, find_overlaps, words

DATA = Path(__file__).parents[1].parent / "shared" / "data"
WORDS = [f"word{i}" for i in range(400)]


def text(start: int, end: int) -> str:
    return " ".join(WORDS[start:end])


def test_what_a_word_is():
    assert words("Find $\\frac{1}{2}x_3$, a 9-kilometer WALK.") == "find \\frac 1 2 x 3 a 9 kilometer walk".split()
    assert words("x=1\ty\u00a0z\n\n{}$$ --") == ["x", "1", "y", "z"]
    assert words("Straße ﬁne Ⅳ É E\u0301") == ["strasse", "fine", "iv", "é", "é"]
    assert words("求x的值。はい") == ["求", "x", "的", "值", "は", "い"]
    assert words("Привет, мир! शून्य")[:2] == ["привет", "мир"]
    assert words("") == words("... $ _ {}") == []


def test_a_planted_problem_is_found_and_shown():
    planted = f"{text(200, 230)}. {text(10, 40).upper()}!\n{text(90, 99)}"
    training = [("a.jsonl row 1", text(300, 400)), ("a.jsonl row 2", planted)]
    report = find_overlaps(training, [("p", text(10, 40)), ("q", text(100, 130))])
    (hit,) = report.overlaps
    assert (hit.problem, hit.rows, hit.num_rows) == ("p", ("a.jsonl row 2",), 1)
    assert (hit.num_found, hit.num_ngrams, hit.share, hit.num_words) == (18, 18, 1.0, 30)
    assert (hit.span, hit.span_row) == (text(10, 40), "a.jsonl row 2")
    assert (report.num_rows, report.num_problems, report.n, report.unchecked) == (2, 2, 13, ())


def test_twelve_words_are_a_near_miss_and_thirteen_are_not():
    problem = [("p", text(0, 50))]
    miss = f"{text(0, 12)} other {text(13, 25)} other {text(26, 38)}"
    assert find_overlaps([("row", miss)], problem).overlaps == ()
    (hit,) = find_overlaps([("row", f"other {text(20, 33)} other")], problem).overlaps
    assert (hit.num_found, hit.num_ngrams, hit.num_words, hit.span) == (1, 38, 13, text(20, 33))
    (hit,) = find_overlaps([("row", miss)], problem, n=12).overlaps
    assert hit.num_found == 3
    reversed_row = " ".join(reversed(text(0, 50).split()))
    assert find_overlaps([("row", reversed_row)], problem).overlaps == ()
    words_of_two_rows = [("row 1", text(0, 7)), ("row 2", text(7, 14))]
    assert find_overlaps(words_of_two_rows, problem).overlaps == (), "a run does not go on in the next row"


def test_pieces_in_several_rows_add_up_and_the_longest_is_shown():
    training = [("r1", text(0, 15)), ("r2", text(10, 40)), ("r3", text(2, 15)), ("r4", text(100, 120))]
    (hit,) = find_overlaps(training, [("p", text(0, 60))]).overlaps
    assert hit.rows == ("r1", "r2", "r3") and hit.num_rows == 3
    assert hit.num_found == 3 + 18 and hit.num_ngrams == 48
    assert (hit.num_words, hit.span, hit.span_row) == (30, text(10, 40), "r2")


def test_a_short_problem_is_looked_for_as_a_whole():
    problems = [("short", "What is the cosine of 60 degrees?"), ("tiny", "Solve $x$.")]
    report = find_overlaps([("row", "He asked: what is the cosine of 60 degrees, please?"), ("r", "solve x")], problems)
    assert [(o.problem, o.num_words, o.share) for o in report.overlaps] == [("short", 7, 1.0)]
    assert report.unchecked == ("tiny",)
    assert find_overlaps([("row", "what is the cosine of 60")], problems).overlaps == ()
    assert len(find_overlaps([("row", "solve x")], problems, shortest=2).overlaps) == 1


def test_phrases_of_the_set_are_no_alarm():
    """Four problems end in the same 15 words, which a training row also has; one problem is planted besides."""
    phrase = "where m and n are relatively prime positive integers find the value of m n"
    problems = [(f"p{i}", f"{text(50 * i, 50 * i + 30)} {phrase}") for i in range(4)]
    training = [("innocent", f"{text(300, 320)} {phrase}"), ("planted", text(50, 70))]
    report = find_overlaps(training, problems)
    assert [(o.problem, o.rows) for o in report.overlaps] == [("p1", ("planted",))] and report.num_boilerplate == 3
    assert len(find_overlaps(training, problems, boilerplate=None).overlaps) == 4
    assert len(find_overlaps(training, problems, boilerplate=5).overlaps) == 4
    ignoring = find_overlaps(training, problems, boilerplate=None, ignore=[phrase])
    assert [o.problem for o in ignoring.overlaps] == ["p1"] and ignoring.num_boilerplate == 3
    twins = find_overlaps([("row", text(0, 20))], [("p", text(0, 20)), ("same", text(0, 20))])
    assert [o.problem for o in twins.overlaps] == ["p", "same"], "two problems alike are not yet a phrase"
    triplets = find_overlaps([("row", text(0, 20))], [(str(k), text(0, 20)) for k in range(3)])
    assert triplets.overlaps == () and triplets.unchecked == ("0", "1", "2"), "what is not looked for is said"


def test_words_that_repeat():
    (hit,) = find_overlaps([("row", "go " * 20)], [("p", "go " * 15)]).overlaps
    assert (hit.num_found, hit.num_ngrams, hit.num_words) == (3, 3, 15)


def test_many_rows_are_counted_but_not_all_named():
    (hit,) = find_overlaps(((f"row {i}", text(0, 20)) for i in range(LISTED_ROWS + 5)), [("p", text(0, 20))]).overlaps
    assert hit.num_rows == LISTED_ROWS + 5 and hit.rows == tuple(f"row {i}" for i in range(LISTED_ROWS))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="problem 'p' is there 2 times"):
        find_overlaps([], [("p", "a"), ("p", "b")])
    for wrong in ({"n": 0}, {"shortest": 0}, {"boilerplate": 1}):
        with pytest.raises(ValueError, match="expected at least 1, 1 and 2"):
            find_overlaps([], [], **wrong)
    empty = find_overlaps([("row", "text")], [])
    assert (empty.num_problems, empty.num_rows, empty.overlaps) == (0, 1, ())


def test_the_report_as_text():
    report = find_overlaps([("f row 3", text(5, 30))], [("p", text(0, 40)), ("tiny", "x")])
    assert describe(report) == (
        "1 of 2 problems share 13-grams with 1 training rows\n"
        "p: 46% (13 of 28) in f row 3\n"
        f"    25 words in f row 3: {text(5, 30)}\n"
        "not checked, too short or nothing of their own: tiny"
    )


ROW = st.lists(st.sampled_from("abc"), max_size=25)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, max_size=4), st.lists(ROW, min_size=1, max_size=3), st.integers(1, 5), st.integers(1, 4))
def test_against_comparing_everything_with_everything(rows, problems, n, shortest):
    """Few different words, so that n-grams repeat and overlap in every way."""
    named_rows = [(f"row {i}", " ".join(row)) for i, row in enumerate(rows)]
    named = [(f"p{i}", " ".join(problem)) for i, problem in enumerate(problems)]
    report = find_overlaps(named_rows, named, n, boilerplate=None, shortest=shortest)
    found = {o.problem: o for o in report.overlaps}
    for i, problem in enumerate(problems):
        length = min(n, len(problem))
        places = range(len(problem) - length + 1) if len(problem) >= shortest else ()
        hits = {p for p in places for row in rows if _stands_in(problem[p : p + length], row)}
        assert (f"p{i}" in found) == bool(hits) and (f"p{i}" in report.unchecked) == (not places)
        if hits:
            o = found[f"p{i}"]
            assert (o.num_found, o.num_ngrams) == (len(hits), len(places))
            assert o.rows == tuple(
                f"row {k}" for k, row in enumerate(rows)
                if any(_stands_in(problem[p : p + length], row) for p in places)
            )  # fmt: skip
            spans = [problem[s:e] for s in range(len(problem)) for e in range(s + length, len(problem) + 1)]
            assert o.num_words == max(len(s) for s in spans if any(_stands_in(s, row) for row in rows))
            assert (
                _stands_in(o.span.split(), dict(named_rows)[o.span_row].split()) and len(o.span.split()) == o.num_words
            )


def _stands_in(piece, row) -> bool:
    return any(row[i : i + len(piece)] == piece for i in range(len(row) - len(piece) + 1))


def test_millions_of_words_take_seconds():
    """The training side is a generator of a million words; half of them are known words, which is the slow case."""
    rng = random.Random(0)
    known = [f"w{i}" for i in range(3000)]
    problems = [(str(k), " ".join(rng.choices(known, k=60))) for k in range(500)]
    rows = [" ".join(rng.choices([*known, *(f"x{i}" for i in range(3000))], k=1000)) for _ in range(100)]
    start = time.perf_counter()
    report = find_overlaps(((f"row {i}", rows[i % 100]) for i in range(1000)), problems)
    assert report.num_rows == 1000 and report.overlaps == ()
    assert time.perf_counter() - start < 30


@pytest.mark.skipif(not (DATA / "eval").exists(), reason="no evaluation sets at hand (../shared/data/eval)")
def test_real_questions_are_found_and_other_sets_are_not():
    """Questions of real traces come from MATH-500 and AIME 24; GSM8K and AIME 25 have nothing of them."""

    def read(name):
        return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]

    math500 = {row["unique_id"]: row["problem"] for row in read("eval/math500.jsonl")}
    aime = {row["id"]: row["problem"] for name in ("aime24", "aime25") for row in read(f"eval/{name}.jsonl")}
    problems = {**math500, **aime}
    questions = [(f"trace {row['id']}", row["question"]) for row in read("traces.jsonl")]
    asked = ["".join(question.split()) for _, question in questions]
    expected = {id for id, problem in problems.items() if any("".join(problem.split()) in text for text in asked)}
    report = find_overlaps(questions, problems.items())
    shares = {o.problem: o.share for o in report.overlaps}
    assert len(expected) > 60 and {id for id, share in shares.items() if share == 1.0} == expected
    assert all(share < 0.05 for id, share in shares.items() if id not in expected), "a phrase of AIME at most"
    gsm8k = [(str(i), f"{r['question']} {r['answer']}") for i, r in enumerate(read("eval/gsm8k_test.jsonl"))]
    assert find_overlaps(gsm8k, problems.items()).overlaps == ()
    shown = [(row["unique_id"], row["solution"]) for row in read("eval/math500.jsonl")]
    assert all(o.rows == (o.problem,) for o in find_overlaps(shown, math500.items()).overlaps), "only its own solution"


def test_the_command_lists_what_is_planted(tmp_path, capsys):
    import json

    from mvtrain.cli import main

    question = "a farmer has seven red hens and nine white hens and sells four of them on a sunny market day"
    tasks, training = tmp_path / "farm.jsonl", tmp_path / "train.jsonl"
    tasks.write_text(json.dumps({"id": "hens", "question": question, "answer": "12"}) + "\n")
    rows = [
        {"question": "nothing", "response": "of it"},
        {"question": "x", "response": f"We read: {question.upper()}!"},
    ]
    training.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "overlap", str(training), "--task", str(tasks)]
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "farm/hens: 100%" in text and "train.jsonl row 2" in text
    training.write_text(json.dumps(rows[0]) + "\n")
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlaps"] == []
    training.write_text("{broken\n")
    assert main(command) == 2 and "row 1" in capsys.readouterr().err
