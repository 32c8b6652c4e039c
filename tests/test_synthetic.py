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
    roads = dict(road.split(" to ") for road in re.search(r"Roads: (.*)\.", question).group(1).split(", "))
    starts = dict(re.findall(r"(\w+) starts at (\w+)", question))
    travellers = re.search(r"Travellers: (.*)\.", question).group(1)

    def result(name: str) -> str:
        place = starts[name]
        while roads[place] != HOME:
            place = roads[place]
        return f"{name}: {place}"

    return re.sub(r"[A-Z]\w+", lambda name: result(name.group()), travellers)


def test_answers_follow_from_the_question():
    for problem in PROBLEMS:
        assert problem.answer == solve(problem.question)


def test_traces_are_canonical_and_some_are_nested():
    for problem in PROBLEMS:
        trace = parse(problem.parallel)
        assert render(trace) == problem.parallel
        assert depth(trace) == num_blocks(trace) == (2 if problem.nested else 1)
        assert num_blocks(parse(problem.sequential)) == 0
    assert 0.4 < sum(problem.nested for problem in PROBLEMS) / len(PROBLEMS) < 0.6


def test_both_forms_hold_the_same_steps():
    def without_markup(text):
        text = re.sub(r"<Outline>.*?</Outline>\n", "", text, flags=re.DOTALL)
        text = re.sub(r"</?[A-Z]\w+>\n?", "", text)
        return re.sub(r"^[\d.]+: ", "", text, flags=re.MULTILINE).strip()

    for problem in PROBLEMS:
        assert without_markup(problem.parallel) == problem.sequential


def test_both_forms_are_graded_right_and_a_wrong_answer_wrong():
    problem = PROBLEMS[0]
    for trajectory in (problem.parallel, problem.sequential):
        assert grade(response_text(trajectory, rf"\boxed{{{problem.answer}}}"), problem.answer).correct is True
    wrong = problem.answer.replace(problem.answer.split()[-1], "nowhere")
    assert grade(response_text(problem.parallel, rf"\boxed{{{wrong}}}"), problem.answer).correct is not True


def test_seeds_give_the_same_and_other_problems():
    assert [p.question for p in problems(5, 5)] == [p.question for p in PROBLEMS[:5]]
    held_out = {p.question for p in problems(200, 6)}
    assert not held_out & {p.question for p in PROBLEMS}


@pytest.mark.parametrize("field", ["question", "answer", "deepseek_thinking_trajectory_parallel"])
def test_rows_carry_the_public_column_names(field):
    assert PROBLEMS[0].row("x")[field]
