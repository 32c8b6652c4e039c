"""Grading against cases worked out by hand."""

import pytest

from mvtrain.evaluate.grading import final_answer, grade


@pytest.mark.parametrize(
    "response, reference, correct",
    [
        (r"So it is \boxed{42}.", "42", True),
        (r"\boxed{042}", "42", True),
        (r"\boxed{1,234}", "1234", True),
        (r"\boxed{0.5}", r"\frac{1}{2}", True),
        (r"\boxed{\frac{3}{6}}", "1/2", True),
        (r"\boxed{41}", "42", False),
        ("Answer: 42", "42", True),
        ("The answer is 17.", "17", True),
        (r"\boxed{tower nest}", "tower nest", True),
        (r"\boxed{nest tower}", "tower nest", False),
        (r"\boxed{(B)}", "B", True),
        (r"\boxed{x^2+1}", r"1+x^2", None),
        ("I do not know", "42", False),
        (r"\boxed{1/0}", "42", None),
    ],
)
def test_grade(response, reference, correct):
    assert grade(response, reference).correct is correct


def test_only_what_follows_the_reasoning_counts():
    assert grade(r"<Think> maybe \boxed{7} </Think> Answer: \boxed{8}", "8").correct is True
    assert grade(r"<Think> maybe \boxed{8} </Think> Answer: \boxed{7}", "8").correct is False
    assert grade(r"<Think> it is \boxed{8} </Think>", "8").correct is False
    assert grade(r"<Parallel> \boxed{8} </Parallel> so \boxed{9}", "8").correct is False


def test_cut_off_text_gives_no_answer():
    assert final_answer(r"Answer: \boxed{70 + ") is None
    assert grade(r"\boxed{70", "70").correct is False
    assert final_answer(r"first \boxed{1} then \boxed{2") == "1"


def test_nested_braces():
    assert final_answer(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
