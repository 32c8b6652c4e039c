"""The grader: hard cases made up for it, real references against themselves and each other, hostile text, time-outs.

`grading_cases.py` and `golden/grading_cases.jsonl` hold the cases: True is right, False is wrong, None is what nobody
could tell from the text. Which grades are acceptable was decided by hand first; where None would do as well as another
grade, the one that is given now is stored.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.evaluate import grading_pool
from mvtrain.evaluate.grading import Grade, compare, final_answer, grade, same_answer
from mvtrain.evaluate.grading_answers import last_box
from mvtrain.evaluate.grading_pool import GradingPool
from tests.grading_cases import CHOICES, GROUPS, HOSTILE_RESPONSES, RESPONSES

pytest.importorskip("math_verify")
GOLDEN = Path(__file__).parent / "golden"
DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}")
LISTED = [(name, *case) for name, cases in GROUPS.items() if name not in ("RESPONSES", "CHOICES") for case in cases]
STORED = [tuple(json.loads(line).values()) for line in (GOLDEN / "grading_cases.jsonl").read_text("utf-8").splitlines()]
MATH = LISTED + STORED
PIECES = [t for _, *texts, _ in MATH for text in texts for t in re.findall(r"\\[A-Za-z]+|\d+|.", text[:200])]

EQUAL_REFERENCES = {
    frozenset(pair)
    for pair in [
        (r"90^\circ", "90"),
        (r"120^\circ", "120"),
        (r"36^\circ", "36"),
        (r"30^\circ", "30"),
        (r"\$36", "36"),
        ("x=5", "5"),
        (r"180^\circ", r"\pi"),
        ("1,-2", "-2,1"),
        (r"\frac{1}{4}", r"\frac14"),
        (r"10,\!080", "10080"),
        (r"15\mbox{ cm}^2", "15"),
        (r"2 \sqrt{5}", r"2\sqrt{5}"),
    ]
}
"""All pairs of different MATH-500 references that count as equal; a person read them."""


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def after_reasoning(answer: str) -> str:
    return f"<Think>\nIt may be 7.\n</Think>\n\nAnswer: \\boxed{{{answer}}}"


@pytest.mark.parametrize(("group", "answer", "reference", "correct"), MATH)
def test_hard_cases(group, answer, reference, correct):
    graded = grade(after_reasoning(answer), reference)
    assert graded.correct is correct, graded
    assert (graded.reason == "") is (correct is True), "whatever is not right says why"


@pytest.mark.parametrize(("response", "reference", "correct"), RESPONSES)
def test_where_the_answer_stands(response, reference, correct):
    assert grade(response, reference).correct is correct


@pytest.mark.parametrize(("response", "reference", "correct"), CHOICES)
def test_choices(response, reference, correct):
    assert grade(response, reference, "choice").correct is correct


def test_the_cases_would_catch_a_grader_that_knows_one_word():
    expected = [correct for *_, correct in (*MATH, *RESPONSES, *CHOICES)]
    assert len(expected) >= 700
    assert min(expected.count(True), expected.count(False)) >= 250 and expected.count(None) >= 50


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \{1, 2\} }", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"Answer: \boxed{70 + ", None),
        (r"first \boxed{1} then \boxed{2", None),
        (r"\boxed{2 + \boxed{3}}", "2 + {3}"),
        (r"\boxed{4} and \boxed{}", "4"),
        (r"Answer: $\boxed{ }$", None),
        (r"so \boxed 52, as said", "52"),
        (r"so \boxed 52", None),
        ("<Think> a </Think> The answer is $x$.", "x"),
        ("<Parallel>a</Parallel> Answer: 3", "3"),
        ("Answer:\n\n3", "3"),
        ("**Final Answer**\n\n3", "3"),
        ("a\n#### 3", "3"),
        ("The final answer is $3$. I hope it is correct.", "3"),
        ("The answer is therefore that which was found on the way above", None),
    ],
)
def test_final_answer(response, answer):
    assert final_answer(response) == answer


@needs_data
def test_every_math500_reference_equals_itself_and_its_solution():
    wrong = []
    for row in rows("eval/math500.jsonl"):
        for answer in (row["answer"], last_box(row["solution"])):
            if grade(after_reasoning(answer), row["answer"]).correct is not True:
                wrong.append((answer, row["answer"]))
    assert wrong == []


@needs_data
def test_math500_references_in_another_writing():
    """Spaces, \\dfrac and text around change nothing; so equality is not only that of texts."""
    for row in rows("eval/math500.jsonl"):
        answer = re.sub(r",(?![\d\\])", ", ", row["answer"]).replace(r"\frac", r"\dfrac").replace("=", " = ")
        if r"\text" not in answer:
            assert grade(f"Answer: $\\boxed{{{answer}}}$.", row["answer"]).correct is True, answer


@needs_data
def test_every_math500_reference_against_every_other():
    """Hardly two are equal, and whether they are can be told of nearly all of them. Of whole numbers a few will do."""
    references = list(dict.fromkeys(row["answer"] for row in rows("eval/math500.jsonl")))
    written = {text for pair in EQUAL_REFERENCES for text in pair}
    whole = [r for r in references if r.isdigit() and r not in written]
    references = [r for r in references if r not in whole[10:]]
    verdicts = {frozenset(pair): compare(*pair)[0] for pair in itertools.combinations(references, 2)}
    assert {pair for pair, verdict in verdicts.items() if verdict is True} == EQUAL_REFERENCES & verdicts.keys()
    assert len(verdicts) > 15_000 and list(verdicts.values()).count(None) <= 25


@needs_data
@pytest.mark.parametrize("name", ["aime24", "aime25", "gsm8k_test"])
def test_references_of_other_tasks(name):
    for row in rows(f"eval/{name}.jsonl"):
        answer = str(row["answer"])
        number = int(answer.rpartition("####")[2].strip().replace(",", ""))
        assert grade(after_reasoning(str(number)), answer).correct is True
        assert grade(after_reasoning(f"{number:,}"), answer).correct is True
        assert grade(after_reasoning(f"{number:05d}"), answer).correct is True
        assert grade(after_reasoning(str(number + 1)), answer).correct is False


@needs_data
def test_real_responses():
    """Read by eye: which of the 67 are right. What was cut off has no answer."""
    expected = json.loads((GOLDEN / "grades_of_real_responses.json").read_text(encoding="utf-8"))
    for row in rows("traces.jsonl"):
        graded = grade(row["response"], str(row["answer"]))
        assert graded.correct is expected[row["id"]], (row["id"], graded)
        if row["kind"] == "malformed" and "</Think>" not in row["response"]:
            assert graded.correct is False and graded.answer is None


@pytest.mark.parametrize(("name", "response"), HOSTILE_RESPONSES.items())
def test_hostile_text_takes_no_time(name, response):
    """In a thread, where no signal could end it."""
    found: list[Grade] = []
    thread = threading.Thread(target=lambda: found.append(grade(response, "1")), daemon=True)
    thread.start()
    thread.join(10)
    assert found, f"{name} hangs"
    assert found[0].correct is not True


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet=r"\{}()[]^_$,.=+-*/ 0123456789abx" + "\n<>|!%&√π", max_size=60), st.text(max_size=30))
def test_no_text_raises(answer, reference):
    assert isinstance(grade(f"\\boxed{{{answer}}} {answer}", reference), Grade)
    assert isinstance(grade(answer, answer, "choice"), Grade)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=25), st.lists(st.sampled_from(PIECES), max_size=12))
def test_no_formula_raises_or_fails_inside(answer, reference):
    _, reason = compare("".join(answer), "".join(reference))
    assert "comparing failed" not in reason


@settings(deadline=None, max_examples=150)
@given(st.fractions(max_denominator=500), st.fractions(max_denominator=500))
def test_fractions_are_equal_exactly_when_they_are(a: Fraction, b: Fraction):
    written = f"\\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert compare(written, f"{b.numerator}/{b.denominator}")[0] is (a == b)
    assert compare(written, str(a))[0] is True


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=5), st.integers(0, 4), st.integers(-3, 3))
def test_polynomials_are_equal_exactly_when_their_coefficients_are(coefficients, place, change):
    """Written from the highest power down, and from the lowest up with one coefficient changed."""
    changed = [c + change * (i == place % len(coefficients)) for i, c in enumerate(coefficients)]
    down = " ".join(f"{c:+d}x^{{{i}}}" for i, c in reversed(list(enumerate(coefficients))))
    up = " ".join(f"{c:+d}x^{i}" for i, c in enumerate(changed))
    assert compare(up, down)[0] is (change == 0)


def test_same_answer_groups_votes():
    assert same_answer("1/2", "0.5") and same_answer("x+1", "1+x") and not same_answer("1/2", "0.49")


def slow(response: str, reference: str, kind: str = "math") -> Grade:
    """In a worker: sleeps, ends the process or lists what is loaded, as the response says."""
    if "sleep" in response:
        time.sleep(60)
    if "die" in response:
        os.kill(os.getpid(), signal.SIGKILL)
    if "modules" in response:
        return Grade(None, None, " ".join(sys.modules))
    return Grade(True, str(os.getpid())) if "pid" in response else grade(response, reference)


@pytest.fixture
def with_slow_grades(monkeypatch):
    monkeypatch.setattr(grading_pool, "grade", slow)


def boxes(*texts: str) -> list[tuple[str, str, str]]:
    return [(rf"\boxed{{{text}}}", "5", "math") for text in texts]


def test_a_grade_that_hangs_or_dies_costs_only_itself(with_slow_grades):
    with GradingPool(num_workers=1, timeout=3) as pool:
        start = time.monotonic()
        grades = pool.grade_all(boxes("5", "sleep", "5", "die", "5", "6"))
        assert time.monotonic() - start < 45
    assert [g.correct for g in grades] == [True, None, True, None, True, False]
    assert "longer than 3 s" in grades[1].reason and "failed" in grades[3].reason


def test_workers_that_are_killed_with_nothing_to_do_are_replaced(with_slow_grades):
    with GradingPool(num_workers=1) as pool:
        for _ in range(2):
            os.kill(int(pool.grade_all(boxes("pid"))[0].answer), signal.SIGKILL)
            time.sleep(0.5)
            assert [g.correct for g in pool.grade_all(boxes("5", "6", "5"))] == [True, False, True]


def test_leaving_waits_for_grades_and_an_exception_gives_them_up(with_slow_grades):
    with GradingPool() as pool:
        waited = pool.submit(*boxes("5")[0])
    assert waited.done() and waited.result().correct is True
    with pytest.raises(KeyError), GradingPool() as pool:
        given_up = pool.submit(*boxes("sleep")[0])
        raise KeyError
    assert given_up.result(timeout=1) == Grade(None, "sleep", "grading was stopped")
    assert pool.submit(*boxes("5")[0]).result(timeout=1).reason == "grading was stopped"


def test_the_pool_agrees_with_the_function_and_serves_any_thread():
    cases = [(after_reasoning(answer), reference, "math") for _, answer, reference, _ in MATH[:60]]
    found: list[Grade] = []
    with GradingPool(num_workers=1) as pool:
        thread = threading.Thread(target=lambda: found.extend(pool.grade_all(cases)))
        thread.start()
        thread.join()
    assert found == [grade(*case) for case in cases]


def test_workers_load_no_torch(with_slow_grades):
    """The test's own modules apart, which a worker loads to find `slow`."""
    with GradingPool() as pool:
        loaded = pool.grade_all(boxes("modules"))[0].reason.split()
    assert "mvtrain.evaluate.grading_values" in loaded and "torch" not in loaded
