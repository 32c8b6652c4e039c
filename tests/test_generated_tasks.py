"""The generated tasks: answers against an independent brute force, both forms against each other, and their lengths."""

import itertools
import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.cli import main
from mvtrain.data.tasks import NUM_FOLDS, TASKS, fold_of, problems
from mvtrain.engine import SamplingParams
from mvtrain.evaluate.grading import grade
from mvtrain.grammar import TAGS, check, depth, num_blocks, parse
from mvtrain.layout import Layout, TagIds
from mvtrain.prompt import response_text

TAG = TagIds(*range(len(TAGS)))
CASE = re.compile(r"([\d.]+): (\S+): (\S+) (\w+) \2; (and|or)-(\S+) (\w+) so (\w+) (\S+)= (\w+) \1= (\w+)$")
SEEDS = st.integers(0, 10_000)


def difficulties(task):
    """Small ones, so that many can be drawn: the trace of n variables has 2^n parts."""
    return st.integers(TASKS[task].lowest, min(TASKS[task].highest, 5))


def one(task, seed, difficulty):
    return next(problems(task, 1, seed, difficulty))


def solve(question: str) -> str:
    """Read the question as text and solve it: nothing of the generators is used."""
    if question.startswith("Words: "):
        return question.removesuffix(" . Say them twice.").split(" ")[-1]
    return solve_sat(question) if question.startswith("There are") else solve_ways(question)


def solve_sat(question: str) -> str:
    """Every assignment of all variables is tried against clauses that are read from the text."""
    count = int(re.match(r"There are (\d+) variables", question).group(1))
    names = "abcdefgh"[:count]
    formula = []
    needs = question.partition("needs: ")[2]
    for literal, first, word, second in re.findall(r"(\S+): (\S+) \1; (and|or)-(\S+)", needs):
        unless = literal.removeprefix("not-") if literal.startswith("not-") else f"not-{literal}"
        formula += [{unless, first}, {unless, second}] if word == "and" else [{unless, first, second}]
    values = set()
    for choice in itertools.product((True, False), repeat=count):
        holds = {name if value else f"not-{name}" for name, value in zip(names, choice, strict=True)}
        if all(clause & holds for clause in formula):
            values.add(choice[0])
    return {(True, False): "true", (False, True): "false", (True, True): "both"}.get(
        (True in values, False in values), "none"
    )


def solve_ways(question: str) -> str:
    text, _, rest = question.removeprefix("Roads: ").partition(" .\n")
    roads = dict(road.split(": ") for road in text.split(" , "))
    starts = dict(re.findall(r"(\d+): (\w+)", rest))
    ends = {}
    for number, place in starts.items():
        while place in roads:
            place = roads[place]
        ends[number] = place
    if "home?" in rest:
        [home] = [number for number, end in ends.items() if end == "home"]
        return home
    return ends["1"] if len(ends) == 1 else " ".join(f"{number}= {end}" for number, end in ends.items())


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=SEEDS)
def test_answers_follow_from_the_question(task, data, seed):
    problem = one(task, seed, data.draw(difficulties(task)))
    assert problem.answer == solve(problem.question)


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=SEEDS)
def test_both_forms_are_well_formed_and_say_the_same(task, data, seed):
    problem = one(task, seed, data.draw(difficulties(task)))
    assert check(problem.parallel) == [] and check(problem.sequential) == []
    assert num_blocks(parse(problem.sequential)) == 0
    text = re.sub(r"<Outline>.*?</Outline>", "", problem.parallel)
    assert re.sub(r"\n+", "\n", re.sub(r"</?[A-Z]\w+>", "\n", text)).strip() == problem.sequential.strip()


@pytest.mark.parametrize("task", TASKS)
def test_both_forms_are_graded_right_and_another_answer_wrong(task):
    first, *others = problems(task, 60, 3)
    other = next(p.answer for p in others if p.answer != first.answer)
    for trajectory in (first.parallel, f"<Think>\n{first.sequential}\n</Think>"):
        row = first.row("x")
        assert grade(response_text(trajectory, row["deepseek_attempt"]), row["answer"]).correct is True
        assert grade(response_text(trajectory, rf"\boxed{{ {other} }}"), row["answer"]).correct is not True


def test_steps_of_sat_are_true():
    """Each literal's verdict is what the label's choices say, and each case stands as its line and its parent do."""
    for problem in problems("sat", 30, 1, (2, 5)):
        stands = {}
        for line in problem.sequential.split("\n"):
            if found := re.match(r"([\d.]+): (\S+) \1= (yes)$", line):
                stands[found[1]] = found[3]
                continue
            found = CASE.match(line)
            if not found:
                assert re.match(r" [\d.]+[>=] (yes|no) [\d.]+[>=] (yes|no) ", line), line
                continue
            label, key, first, v1, word, second, v2, met, parent, before, after = found.groups()
            chosen = {("" if c == "1" else "not-") + name for name, c in zip("abcdef", label.split("."), strict=False)}
            assert key in chosen and (v1, v2) == tuple("yes" if x in chosen else "no" for x in (first, second))
            assert f" {key}: {first} {key}; {word}-{second} " in problem.question
            assert met == ("yes" if (all if word == "and" else any)(v == "yes" for v in (v1, v2)) else "no")
            assert before == stands[parent] and parent == label.rpartition(".")[0]
            assert after == ("yes" if met == before == "yes" else "no")
            stands[label] = after


def test_every_answer_of_sat_occurs_often():
    answers = [problem.answer for problem in problems("sat", 400, 0, 4)]
    assert all(answers.count(answer) > 40 for answer in ("both", "true", "false", "none"))


def tokens(text: str) -> torch.Tensor:
    """Tags, newlines, and words with the space before them; the id of a word does not matter to a layout."""
    pieces = re.findall("|".join(TAGS) + r"|\n| ?[^\s<]+", text)
    assert "".join(pieces) == text
    return torch.tensor([TAGS.index(piece) if piece in TAGS else len(TAGS) for piece in pieces])


def critical_path(text: str) -> int:
    return int(Layout.from_ids(tokens(text), TAG).position_ids.max()) + 1


def test_chains_of_sat_grow_with_two_to_the_n_and_critical_paths_by_a_constant():
    found = [one("sat", 0, n) for n in range(2, 8)]
    chains = [len(tokens(problem.sequential)) for problem in found]
    paths = [critical_path(problem.parallel) for problem in found]
    assert [critical_path(problem.sequential) for problem in found] == chains
    steps = [b - a for a, b in itertools.pairwise(paths)]
    assert len(set(steps)) == 1 and steps[0] < 60, paths
    growth = [b - a for a, b in itertools.pairwise(chains)]
    assert [b / a for a, b in itertools.pairwise(growth)] == [2.0] * 4, chains
    assert all(3 * path <= chain for n, path, chain in zip(range(2, 8), paths, chains, strict=True) if n >= 4)
    assert [len(re.findall(r"^[\d.]+:", p.sequential, re.MULTILINE)) for p in found] == [
        2 ** (n + 1) - 2 for n in range(2, 8)
    ]


def test_blocks_of_sat_nest_as_deep_as_the_engine_forks_by_default():
    for n in range(2, 6):
        assert depth(parse(one("sat", 0, n).parallel)) == n - 1 <= SamplingParams().max_depth


def test_mixed_has_all_three_kinds_and_only_single_ways_have_no_block():
    found = list(problems("mixed", 120, 2))
    for kind in ("collective", "selective", "single"):
        assert sum(problem.kind == kind for problem in found) > 20
    for problem in found:
        assert num_blocks(parse(problem.parallel)) == (problem.kind != "single")
        parallelism = len(tokens(problem.parallel)) / critical_path(problem.parallel)
        assert parallelism == 1 if problem.kind == "single" else parallelism > 1.25


@pytest.mark.parametrize("task", TASKS)
def test_seeds_repeat_themselves_and_folds_share_nothing(task):
    drawn = {seed: [p.question for p in problems(task, 60, seed, TASKS[task].lowest)] for seed in range(NUM_FOLDS)}
    assert drawn[1] == [p.question for p in problems(task, 60, 1, TASKS[task].lowest)]
    assert drawn[1][:5] == [p.question for p in problems(task, 5, 1, TASKS[task].lowest)]
    for first, second in itertools.combinations(drawn.values(), 2):
        assert not set(first) & set(second)
    assert {fold_of(problem) for problem in problems(task, 20, NUM_FOLDS + 3)} == {3}


def test_words_to_say_twice_are_all_that_other_tasks_look_up():
    said = {word for problem in problems("copying", 200, 0) for word in problem.sequential.split()}
    looked_up = {word for problem in problems("mixed", 100, 0, (2, 6)) for word in problem.sequential.split()}
    labels = {f"{number}:" for number in range(1, 7)}
    assert {f"{number}=" for number in range(1, 7)} <= looked_up - labels - {"so", *"123456"} <= said


@pytest.mark.parametrize("variables", [2, 3])
def test_folds_of_sat_share_no_formula_however_it_is_told(variables):
    def formula(question):
        needs = re.findall(r"(\S+): (\S+) \1; (and|or)-(\S+)", question.partition("needs: ")[2])
        assert len(needs) == 2 * (variables - 1)
        return frozenset((key, word, frozenset((first, second))) for key, first, word, second in needs)

    drawn = [{p.question for p in problems("sat", 400, seed, variables)} for seed in range(NUM_FOLDS)]
    formulas = [{formula(question) for question in questions} for questions in drawn]
    assert all(len(told) > len(found) for told, found in zip(drawn, formulas, strict=True))  # some are told twice
    assert sum(map(len, formulas)) == len(set().union(*formulas))


def test_the_command_writes_a_task(tmp_path):
    out = tmp_path / "x.jsonl"
    assert main(["prepare", "synthetic", str(out), "--task", "sat", "--difficulty", "2-3", "--count", "9"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"sat-0-{index}" for index in range(9)]
    assert {row["difficulty"] for row in rows} == {2, 3}
    assert all(solve(row["question"]) == row["answer"] for row in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "sat", "--difficulty", "1"], "difficulty 1: task sat has 2 to 8 (variables of the formula)"),
        (["--task", "mixed", "--difficulty", "4-3"], "difficulty 4-3: task mixed has 2 to 6"),
        (["--task", "sat", "--difficulty", "x"], "--difficulty x: expected a number, or a range such as 2-5"),
        (["--difficulty", "3"], "--difficulty 3: travellers have none"),
    ],
)
def test_the_command_refuses_difficulties_that_are_none(tmp_path, capsys, flags, message):
    assert main(["prepare", "synthetic", str(tmp_path / "x.jsonl"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


def test_plain_rows_have_the_chain_and_no_tag(tmp_path):
    for name, flags in (("plain", ["--plain"]), ("both", [])):
        out = str(tmp_path / f"{name}.jsonl")
        assert main(["prepare", "synthetic", out, "--task", "mixed", "--count", "6", *flags]) == 0
    plain, both = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("plain", "both")
    )
    for bare, row in zip(plain, both, strict=True):
        assert bare["question"] == row["question"] and not re.search("|".join(TAGS), bare["response"])
        assert bare["response"].startswith(row["deepseek_thinking_trajectory_sequential"])
        assert grade(bare["response"], bare["answer"]).correct is True
