"""Two runs side by side: common problems, sides that do not fit, and the table."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from mvtrain.evaluate.compare import as_table, compare
from mvtrain.evaluate.records import Problem
from mvtrain.evaluate.tasks import ask
from tests.samples import make_sample, make_samples

A = {"p": "++", "q": "+-", "r": "--", "s": "--"}
B = {"p": "++", "q": "++", "r": "-+", "s": "--"}


def test_two_runs_by_hand():
    samples_b = make_samples(B, critical_path=10, num_generated=25)
    (c,) = compare(make_samples(A), samples_b)
    assert (c.task, c.mode_a, c.mode_b, c.num_common, c.warnings) == ("sums", "parallel", "parallel", 4, ())
    assert (c.a.avg.value, c.b.avg.value) == (3 / 8, 5 / 8)
    assert c.accuracy.difference == 1 / 4 and c.accuracy.p_value == 2 / 4, "two problems differ, by a half each"
    assert (c.a.parallelism.value, c.b.parallelism.value) == (1.5, 2.5)
    assert c.critical_path.difference == -10 and c.critical_path.p_value == 2 / 2**4
    assert (c.solved_only_by_a, c.solved_only_by_b) == ((), ("r",))
    (back,) = compare(samples_b, make_samples(A))
    assert back.accuracy.difference == -1 / 4 and back.solved_only_by_a == ("r",)
    json.dumps(asdict(c))


def test_a_run_against_itself():
    (c,) = compare(make_samples(A), make_samples(A))
    assert c.a == c.b and c.accuracy.difference == 0.0 and c.accuracy.p_value == 1.0
    assert c.solved_only_by_a == c.solved_only_by_b == ()


def test_only_what_is_common_and_the_same_counts():
    samples_a = make_samples({**A, "x": "++", "other": "++", "changed": "++"})
    samples_b = make_samples({**B, "other": "--", "y": "--"})
    samples_b = [replace(s, question="another question") if s.id == "other" else s for s in samples_b]
    samples_b += [replace(s, reference="8") for s in make_samples({"changed": "--"})]
    (c,) = compare(samples_a, samples_b)
    assert (c.num_common, c.a.num_problems, c.a.avg.value, c.b.avg.value) == (4, 4, 3 / 8, 5 / 8)
    assert c.warnings == (
        "1 problems only a has, left out: x",
        "1 problems only b has, left out: y",
        "1 problems with different questions, left out: other",
        "1 problems with different references, left out: changed",
    )
    with pytest.raises(ValueError, match=r"1 problems with different questions, left out: other; nothing is left"):
        compare([s for s in samples_a if s.id == "other"], [s for s in samples_b if s.id == "other"])


def test_options_in_another_order_are_the_same_question():
    def samples(seed: int, options=("9 m/s", "8 m/s", "7 m/s")):
        question, reference = ask(Problem("sums", "1", "How fast?", "A", "choice", options), seed)
        return [make_sample("1", kind="choice", question=question, reference=reference)]

    assert samples(0)[0].question != samples(1)[0].question
    assert compare(samples(0), samples(1))[0].warnings == ()
    with pytest.raises(ValueError, match="different references"):
        compare(samples(0), samples(1, ("8 m/s", "9 m/s", "7 m/s")))
    with pytest.raises(ValueError, match="different questions"):
        compare(samples(0), samples(1, ("9 m/s", "8 m/s", "6 m/s")))


def test_which_modes_are_compared():
    parallel, sequential = make_samples(A), make_samples(B, mode="sequential")
    (c,) = compare(parallel, sequential)
    assert (c.mode_a, c.mode_b, c.accuracy.difference) == ("parallel", "sequential", 1 / 4)
    both = compare(parallel + sequential, parallel + sequential)
    assert [(c.mode_a, c.mode_b) for c in both] == [("parallel", "parallel"), ("sequential", "sequential")]
    (shared,) = compare(parallel + sequential, sequential)
    assert (shared.mode_a, shared.mode_b, shared.accuracy.difference) == ("sequential", "sequential", 0.0)
    with pytest.raises(ValueError, match=r"one side has the modes parallel, sequential, the other unasked; choose one"):
        compare(parallel + sequential, make_samples(A, mode="unasked"))
    tasks = compare(parallel + make_samples(A, task="other"), sequential + make_samples(B, task="other"))
    assert [c.task for c in tasks] == ["sums", "other"]
    with pytest.raises(ValueError, match="no task is common to the two: sums against other"):
        compare(parallel, make_samples(A, task="other"))
    with pytest.raises(ValueError, match="sums against none"):
        compare(parallel, [])


def test_unequal_sampling_is_pointed_out():
    cut = [replace(s, finish_reason="length") for s in make_samples({id: marks[:1] for id, marks in B.items()})]
    (c,) = compare(make_samples(A), cut)
    assert c.warnings == (
        "samples per problem differ: 2 against 1; more samples solve more problems",
        "100% of the samples of b were cut at the length limit",
    )


def test_the_table():
    (c,) = compare(make_samples(A), make_samples({**B, "y": "+"}, critical_path=10, num_generated=25))
    table = as_table([c, c], "old|run", "new")
    lines = table.split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1 and all(line.count("|") - line.count("\\|") == 5 for line in lines)
    assert "old\\|run (parallel)" in lines[0] and lines[2].startswith("| avg@2 ")
    assert "37.5% [" in table and "+25.0 points [" in table and "p = 0.5" in table
    assert "| -10 [-10, -10], p = 0.12" in table and "2.50 [2.50, 2.50]" in table
    assert "Solved only by new: 1: r" in table and "Solved only by old|run: 0\n" in table
    assert "Warning: 1 problems only b has, left out: y" in table and table.count("avg@2") == 2
    (one,) = compare(make_samples({"p": "+"}), make_samples({"p": "-"}))
    assert "avg@1" in as_table([one]) and "-100.0 points, p = 1" in as_table([one])
