"""The embedded problems: their answers follow from the question alone, and both forms say the same."""

import re

import pytest

from mvtrain.data.synthetic import HOME, problems
from mvtrain.evaluate.grading import grade
from mvtrain.grammar import depth, num_blocks, parse, render
from mvtrain.prompt import response_text

PROBLEMS = list(problems(200, seed=5))


def solve(question: str) -> str:
    """Read the question as text, follow the roads, and name the last places: nothing of the generator is used."""
    roads = dict(road.split(" > ") for road in re.search(r"Roads: (.*)\.", question).group(1).split(", "))
    last = []
    for name, place in re.findall(r"(\w+) starts at (\w+)", question):
        while roads[place] != HOME:
            place = roads[place]
        last.append(f"{name}: {place}")
    return ", ".join(last)


def test_answers_follow_from_the_question():
    for problem in PROBLEMS:
        assert problem.answer == solve(problem.question)


def test_traces_are_canonical_and_some_are_nested():
    for problem in PROBLEMS:
        trace = parse(problem.parallel)
        assert render(trace) == problem.parallel
        assert depth(trace) == num_blocks(trace) == (2 if problem.nested else 1)
        assert num_blocks(parse(problem.sequential)) == 0
    assert 0.15 < sum(problem.nested for problem in PROBLEMS) / len(PROBLEMS) < 0.35


def test_both_forms_hold_the_same_steps():
    def steps(text):
        return sorted(re.findall(r"From \w+ the road leads to \w+\.", text))

    for problem in PROBLEMS:
        assert steps(problem.parallel) == steps(problem.sequential)


def test_both_forms_are_graded_right_and_a_wrong_answer_wrong():
    problem = PROBLEMS[0]
    for trajectory in (problem.parallel, problem.sequential):
        assert grade(response_text(trajectory, rf"\boxed{{{problem.answer}}}"), problem.answer).correct is True
    assert grade(response_text(problem.parallel, r"\boxed{nowhere}"), problem.answer).correct is False


def test_seeds_give_the_same_and_other_problems():
    assert [p.question for p in problems(5, 5)] == [p.question for p in PROBLEMS[:5]]
    held_out = {p.question for p in problems(200, 6)}
    assert not held_out & {p.question for p in PROBLEMS}


@pytest.mark.parametrize("field", ["question", "answer", "deepseek_thinking_trajectory_parallel"])
def test_rows_carry_the_public_column_names(field):
    assert PROBLEMS[0].row("x")[field]
