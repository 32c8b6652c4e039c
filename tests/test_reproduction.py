"""The reproduction's plan, arithmetic and page, on values worked out by hand; tests/distributed has all of it."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(autouse=True)
def examples_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


# Problems and models


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A small plan whose trainings are only noted down."""
    from reproduction import models, plan

    trained = {}
    monkeypatch.setattr(models, "train", lambda work, name, *args, **kwargs: trained.update({name: (args, kwargs)}))
    monkeypatch.setattr(models, "tokens_of", lambda work, name: 123)
    monkeypatch.setattr(models, "run", lambda *command, **options: None)
    found = models.Work(tmp_path, plan.SMOKE)
    return found, trained


@pytest.mark.parametrize("seed", [0, 1])
def test_no_problem_that_is_answered_was_trained_on_or_chosen_on(tmp_path, monkeypatch, seed):
    from reproduction import models, plan

    from mvtrain.cli import main

    monkeypatch.setattr(models, "run", lambda program, *command: main(list(command)))
    asked = {}
    for held_out in ("test", "validate"):
        work = models.Work(tmp_path / held_out, plan.SMOKE, seed, held_out)
        models.prepare(work)
        for file in (work.out / "data").glob("*.jsonl"):
            part = held_out if file.name.startswith("test_") else "train"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            asked.setdefault(part, set()).update(row["question"] for row in rows)
            if part != "train":
                number = re.search(r"_(\d)\.", file.name)
                hard = int(number[1]) if number else {"test_mixed": 6, "test_sat": 4}[file.stem]
                assert {row["difficulty"] for row in rows} == {hard}
    assert set(asked) == {"train", "test", "validate"}
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validate"]
    assert not asked["test"] & asked["validate"]


def test_every_seed_has_problems_of_its_own_in_the_fold_of_their_part():
    from reproduction.plan import FOLDS, seed_of

    from mvtrain.data.tasks import NUM_FOLDS

    folds = {part: {seed_of(part, seed) % NUM_FOLDS for seed in range(4)} for part in FOLDS}
    assert folds["train"] == folds["tune"] and all(len(found) == 1 for found in folds.values())
    assert len(set.union(folds["train"], folds["validate"], folds["test"])) == 3
    seeds = [seed_of(part, seed) for part in FOLDS for seed in range(4)]
    assert len(set(seeds)) == len(seeds)


def test_both_models_are_tuned_on_the_same_chains_for_as_many_tokens(work):
    from reproduction import models

    found, trained = work
    models.tune(found)
    args, multiverse = trained["multiverse"]
    assert multiverse == {"sequential": ["mixed", "sat"], "parallel": ["mixed", "sat"]}
    (*same, tokens), autoregressive = trained["autoregressive"]
    assert tuple(same) == args and tokens == 123
    assert autoregressive == {"sequential": ["mixed", "sat"], "flags": ["--data.curriculum", "none"]}


def test_every_ablation_is_the_reference_but_for_one_thing(work, tmp_path):
    from reproduction import models, plan

    found, trained = work
    (tmp_path / "base").mkdir()
    rows = torch.arange(40.0).reshape(10, 4)
    save_file(
        {"model.embed_tokens.weight": rows, "model.norm.weight": rows[0].clone()},
        tmp_path / "base" / "model.safetensors",
    )
    (tmp_path / "base" / "mvtrain.json").write_text(json.dumps({"tags": {"<Path>": 7, "</Path>": 9}}))
    for name in plan.ABLATIONS:
        models.ablation(found, name)
    assert set(trained) == set(plan.ABLATIONS)
    _, start, tokens, sequential, parallel, flags = trained["reference"][0]
    assert (tokens, flags, sequential) == (None, [], parallel) and start == str(tmp_path / "base")
    changed = {name: [a != b for a, b in zip(args, trained["reference"][0], strict=True)]
               for name, (args, _) in trained.items()}  # fmt: skip
    assert changed == {
        "reference": [False] * 6,
        "original": [False] * 5 + [True],
        "causal": [False] * 5 + [True],
        "parallel_only": [False, False, True, True, False, True],  # and as many tokens
        "same_rows": [False, True, False, False, False, False],
        "fast_rows": [False] * 5 + [True],
    }
    after = load_file(tmp_path / "base_same_rows" / "model.safetensors")
    expected = rows.clone()
    expected[[7, 9]] = rows[:7].mean(dim=0)
    assert torch.equal(after["model.embed_tokens.weight"], expected)
    assert torch.equal(after["model.norm.weight"], rows[0])


def test_fewer_examples_keep_the_proportion_of_tasks(work, monkeypatch):
    from reproduction import models

    found, trained = work
    made = {}
    monkeypatch.setattr(models, "_problems", lambda work, name, task, count, *rest: made.update({name: count}))
    models.transfer(found, 70)
    _, kwargs = trained["transfer_70"]
    assert kwargs == {"sequential": ["mixed_70", "sat_70"], "parallel": ["mixed_70", "sat_70"]}
    assert made == {"mixed_70": 50, "sat_70": 20}  # 5 and 2


# Evaluation and time


def test_models_are_asked_as_the_tables_say(work, monkeypatch):
    from reproduction import experiments

    found, _ = work
    asked = []
    monkeypatch.setattr(experiments, "run", lambda *command, **options: asked.append(command) or '{"comparisons": []}')
    experiments.table_2(found)
    experiments.growth(found)
    experiments.in_parallel(found, "causal")
    experiments.in_parallel(found, "original")
    experiments.difference(found, "autoregressive", "multiverse:parallel")
    *evaluations, compared = asked
    told = [
        (Path(c[2]).relative_to(found.out).parts[0], c[c.index("--modes") + 1], sorted(
            Path(file).stem for flag, file in itertools.pairwise(c) if flag == "--task"))
        for c in evaluations
    ]  # fmt: skip
    tested, grown = ["test_mixed", "test_sat"], [f"test_sat_{n}" for n in (2, 3, 4, 5)]
    assert told == [
        ("base", "sequential", tested),
        ("autoregressive", "sequential", tested),
        ("multiverse", "parallel,unasked,sequential", tested),
        ("autoregressive", "sequential", grown),
        ("multiverse", "parallel,sequential", grown),
        ("causal", "parallel", tested),
        ("original", "parallel", tested),
    ]
    assert evaluations[5][-2:] == ("--scheme", "isolated") and "--scheme" not in evaluations[6]
    assert [Path(folder).name for folder in compared[3:5]] == ["autoregressive", "multiverse:parallel"]


def test_answers_are_counted_by_mode_and_kind(work):
    from reproduction import experiments

    found, _ = work
    folder = found.out / "evaluate" / "multiverse"
    folder.mkdir(parents=True)
    answers = [
        ("test_mixed", "parallel", "single", True, 0, True),
        ("test_mixed", "parallel", "collective", True, 1, True),
        ("test_mixed", "parallel", "collective", None, 2, True),
        ("test_mixed", "parallel", "collective", True, 1, False),
        ("test_mixed", "parallel", "collective", False, 0, True),
        ("test_mixed", "unasked", "collective", True, 0, True),
        ("test_sat", "parallel", "sat", True, 3, True),
    ]
    names = ("task", "mode", "meta", "correct", "num_blocks", "well_formed")
    rows = [dict(zip(names, (t, m, {"kind": kind}, *rest), strict=True)) for t, m, kind, *rest in answers]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [tuple(row.values()) for row in experiments.kinds(found, "multiverse")]
    assert told == [
        ("test_mixed", "parallel", "collective", 4, 2, 2),
        ("test_mixed", "parallel", "single", 1, 1, 0),
        ("test_mixed", "unasked", "collective", 1, 1, 0),
        ("test_sat", "parallel", "sat", 1, 1, 1),
    ]


def test_the_best_constant_answer_is_the_most_common_one(work):
    from reproduction import experiments

    found, _ = work
    (found.out / "data").mkdir()
    answers = ["both", "none", "both", "true", "false"]
    found.file("test_sat").write_text("".join(json.dumps({"answer": answer}) + "\n" for answer in answers))
    assert experiments.best_constant(found, "sat") == 0.4


def test_speed_up_is_tokens_a_second_in_parallel_over_in_sequence(work, monkeypatch):
    from reproduction import speed

    found, _ = work
    seconds = iter([2.0, 5.0, 1.0, 5.0, 1.0, 4.0])  # three turns: in parallel, then in sequence
    clock = {"now": 0.0}

    class Answer:
        num_generated, critical_path = 100, 25

    class OneAnswer:
        def generate(self, questions, params):
            asked.append(params.parallel)
            clock["now"] += next(seconds)
            return [Answer()]

    asked: list[bool] = []
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["now"])
    told = speed._in_turns(found, OneAnswer(), ["?"])
    assert asked == [True, False] * 3
    assert told == {
        "parallelism": 4.0,
        "tokens_per_second": 100.0,
        "tokens_per_second_sequential": 20.0,
        "speed_up": 4.0,
        "least": 2.5,
        "most": 5.0,
    }


def test_only_tokens_that_transformers_wrote_count(work, monkeypatch):
    from reproduction import speed

    found, _ = work
    clock = {"now": 0.0}
    eos = 9
    prompts = {"long": [1, 2, 3, 4], "short": [5, 6]}

    class Engine:
        class tokenizer:
            eos_token_id = eos

        def encode(self, question, params):
            assert not params.parallel
            return prompts[question]

    class Model:
        def generate(self, ids, attention_mask, **options):
            assert ids.tolist() == [[1, 2, 3, 4], [eos, eos, 5, 6]]
            assert attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
            assert not options["do_sample"]
            clock["now"] += 2.0
            return torch.cat([ids, torch.tensor([[7, 7, 7, eos], [7, eos, eos, eos]])], dim=1)

    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock["now"])
    told = speed._stock_tokens_per_second(found, Model(), Engine(), ["long", "short"])
    assert told == (4 + 2) / 2.0  # each with its end


# Claims


def estimate(value: float, width: float = 0.05) -> dict:
    return {"value": value, "low": value - width, "high": value + width}


def difference(task: str, value: float, width: float = 0.02, num_problems: int = 200) -> dict:
    found = {"num_problems": num_problems, "difference": value, "low": value - width, "high": value + width}
    return {"task": task, "accuracy": found}


def run(task: str, mode: str, accuracy: float, parallelism: float = 1.0, tokens: float = 0, path: float = 0) -> dict:
    measures = {"avg": estimate(accuracy), "parallelism": estimate(parallelism), "well_formed": estimate(1.0)}
    measures |= {"generated_tokens": tokens, "critical_path_tokens": path}
    return {"task": task, "mode": mode, "num_problems": 400, "measures": measures}


def made_up() -> dict:
    """Results in which everything that is claimed holds."""
    from reproduction import plan

    tasks = ("test_mixed", "test_sat")
    early = {"parallel": 0.9, "sequential": 0.1}
    points = {mode: ((64, 0.0), (200, value), (512, 0.9)) for mode, value in early.items()}
    curve = [
        {"task": task, "mode": mode, "points": [
            {"budget": budget, "accuracy": estimate(value)} for budget, value in points[mode]
        ]}
        for task in tasks for mode in early
    ]  # fmt: skip
    models = {
        "base": [run(task, "sequential", 0.1) for task in tasks],
        "autoregressive": [run(task, "sequential", 0.95, 1, 500, 500) for task in tasks],
        "multiverse": [
            run(task, mode, 0.95, parallelism, 700, 100)
            for task in tasks
            for mode, parallelism in (("parallel", 3.0), ("unasked", 1.1), ("sequential", 1.0))
        ],
    }
    lengths = {n: (126 * 2 ** (n - 2), 60 + 39 * (n - 2)) for n in (2, 3, 4, 5)}
    of_mixed = [("test_mixed", kind) for kind in ("collective", "selective", "single")]
    kinds = [
        {"task": task, "mode": "parallel", "kind": kind, "problems": 100, "right": 95,
         "in_blocks": 0 if kind == "single" else 100}
        for task, kind in (*of_mixed, ("test_sat", "sat"))
    ]  # fmt: skip
    few = {name: {"groups": [run(task, "parallel", 0.95, 3.0) for task in tasks]}
           for name in (*plan.ABLATIONS, "transfer_100", "transfer_300")}  # fmt: skip
    batch = {"batch": 8, "parallelism": 3.0, "speed_up": 1.5, "least": 1.4, "most": 1.6, "tokens_per_second": 3.0,
             "tokens_per_second_sequential": 2.0, "tokens_per_second_transformers": 2.5}  # fmt: skip
    return {
        "plan": plan.as_told(plan.FULL, 0, "test"),
        "command": "c", "machine": "m", "date": "d", "parameters": 500_000, "minutes": {"base": 3.0},
        "commands": ["deepspeed launch/sft.py R"],
        "table_2": {name: {"groups": groups, "budgets": curve} for name, groups in models.items()},
        "difference": [difference(task, 0.0) for task in tasks],
        "unasked": [difference(task, 0.0) for task in tasks],
        "growth": {
            "autoregressive": {
                "groups": [run(f"test_sat_{n}", "sequential", 0.95, 1, a, a) for n, (a, _) in lengths.items()]
            },
            "multiverse": {
                "groups": [
                    run(f"test_sat_{n}", mode, 0.95, 3, 1.3 * a, b)
                    for n, (a, b) in lengths.items() for mode in ("parallel", "sequential")
                ]
            },
        },
        "alone": [{"parallelism": p, "speed_up": 0.95 * p, "ms_per_token": 1 / p, "ms_per_token_sequential": 1.0}
                  for p in (1.0, 2.0, 4.0)],
        "in_batches": [batch],
        "few": few,
        "kinds": {name: copy.deepcopy(kinds) for name in (*models, *few)},
        "against_reference": {name: [difference(task, 0.0) for task in tasks] for name in plan.ABLATIONS[1:]},
        "tokens": {name: 2_950_000 for name in (*models, *few)},
        "best_constant": {"mixed": 0.05, "sat": 0.31},
        "reference_against_all": [difference(task, 0.0) for task in tasks],
    }  # fmt: skip


def measures(results: dict, model: str, task: str, mode: str, part: str = "table_2") -> dict:
    groups = (results[part][model])["groups"]
    return next(g["measures"] for g in groups if (g["task"], g["mode"]) == (task, mode))


def table_2_worse(results):
    results["difference"][0] = difference("test_mixed", -0.2)


def table_2_open(results):
    results["difference"][1] = difference("test_sat", -0.1, 0.11)


def too_few_to_tell(results):
    results["difference"][1] = difference("test_sat", 0.0, 0.0, num_problems=30)  # all agree, but 30 rule out 11 points


def no_margin(results):
    results["difference"][0] = difference("test_mixed", -0.04)  # its low end is -0.06, its high end below 0


def base_too_good(results):
    measures(results, "base", "test_sat", "sequential")["avg"] = estimate(0.66)


def autoregressive_near_base(results):
    measures(results, "autoregressive", "test_mixed", "sequential")["avg"] = estimate(0.3)


def autoregressive_at_base(results):
    measures(results, "autoregressive", "test_mixed", "sequential")["avg"] = estimate(0.15)


def one_task_without_parallelism(results):
    measures(results, "multiverse", "test_mixed", "parallel")["parallelism"] = estimate(1.04)
    measures(results, "multiverse", "test_mixed", "unasked")["parallelism"] = estimate(0.9)


def as_parallel_unasked(results):
    measures(results, "multiverse", "test_sat", "unasked")["parallelism"] = estimate(2.95)


def multiverse_at_base(results):
    measures(results, "multiverse", "test_mixed", "parallel")["avg"] = estimate(0.1)


def worse_unasked(results):
    results["unasked"][0] = difference("test_mixed", -0.3)


def long_path(results):
    for group in results["growth"]["multiverse"]["groups"]:
        group["measures"]["critical_path_tokens"] *= 1.5


def wrong_at_five(results):
    measures(results, "autoregressive", "test_sat_5", "sequential", "growth")["avg"] = estimate(0.85)


def path_that_bends(results):
    for n, path in ((2, 60), (3, 90), (4, 140), (5, 210)):
        measures(results, "multiverse", f"test_sat_{n}", "parallel", "growth")["critical_path_tokens"] = path


def chain_as_a_cube(results):
    for n in (2, 3, 4, 5):
        measures(results, "autoregressive", f"test_sat_{n}", "sequential", "growth")["generated_tokens"] = 20 * n**3


def behind_on_a_budget(results):
    _budget(results, "test_mixed", 0.05, 0.3)


def level_on_a_budget(results):
    _budget(results, "test_mixed", 0.3, 0.25)


def _budget(results, task, ours, theirs):
    results["table_2"] = copy.deepcopy(results["table_2"])
    for model, mode, value in (("multiverse", "parallel", ours), ("autoregressive", "sequential", theirs)):
        (curve,) = [c for c in results["table_2"][model]["budgets"] if (c["task"], c["mode"]) == (task, mode)]
        curve["points"][1]["accuracy"] = estimate(value)


def slow(results):
    for row in results["alone"]:
        row["speed_up"] = 0.7 * row["parallelism"]


def slow_when_wide(results):
    results["alone"] = [{"parallelism": p, "speed_up": s * p} for p, s in ((2, 0.95), (2, 0.96), (4, 0.85))]


def nothing_alone(results):
    results["alone"] = [{"parallelism": 1.0, "speed_up": 1.0}]


def slow_in_batches(results):
    results["in_batches"][0] |= {"least": 0.95}


def slower_than_transformers(results):
    results["in_batches"][0] |= {"tokens_per_second_transformers": 3.5}


def few_without_form(results):
    for row in results["kinds"]["reference"]:
        row["in_blocks"] = min(row["in_blocks"], 70)


def few_are_worse(results):
    results["reference_against_all"][1] = difference("test_sat", -0.4)


def other_number_of_few(results):
    results["plan"]["size"]["few"] = {"mixed": 250, "sat": 250}


AS_WELL = "Multiverse answers as well as Autoregressive"
FAR_ABOVE = "both far above the base, by 20 points and more"
AS_WITH = "without the instruction Multiverse answers as well as with it"
LINEAR = "the critical path grows linearly with n, the chain exponentially"
THIRD = "from n = 4 the critical path is at most a third, at 90% right and more"
AHEAD = "ahead at budgets between Multiverse's critical path and Autoregressive's length"
SPEED = "at batch 1 the speed-up is at least 0.9 times the parallelism"
FORM, ANSWERS = (f"1,000 examples are enough to {what}" for what in ("write blocks", "answer as well as with all"))
CASES = [
    (table_2_worse, {f"mixed: {AS_WELL}": False}),
    (table_2_open, {f"sat: {AS_WELL}": None}),
    (too_few_to_tell, {f"sat: {AS_WELL}": None}),
    (no_margin, {f"mixed: {AS_WELL}": False}),
    (base_too_good, {f"sat: {FAR_ABOVE}": False}),
    (autoregressive_near_base, {f"mixed: {FAR_ABOVE}": False}),
    (autoregressive_at_base, {f"mixed: {FAR_ABOVE}": False, f"mixed: {AS_WELL}": None}),
    (one_task_without_parallelism, {"parallelism above 1, and higher with the instruction": False}),
    (as_parallel_unasked, {"parallelism above 1, and higher with the instruction": False}),
    (multiverse_at_base, {f"mixed: {FAR_ABOVE}": False, f"mixed: {AS_WITH}": None}),
    (worse_unasked, {f"mixed: {AS_WITH}": False}),
    (long_path, {THIRD: False}),
    (wrong_at_five, {THIRD: False}),
    (path_that_bends, {LINEAR: False}),
    (chain_as_a_cube, {LINEAR: False}),
    (behind_on_a_budget, {f"mixed: {AHEAD}": False}),
    (level_on_a_budget, {f"mixed: {AHEAD}": None}),
    (slow, {f"{SPEED}, as a median": False, f"{SPEED}, at each parallelism": False}),
    (slow_when_wide, {f"{SPEED}, at each parallelism": False}),
    (nothing_alone, {f"{SPEED}, as a median": None, f"{SPEED}, at each parallelism": None}),
    (slow_in_batches, {"more tokens a second than in sequence at every batch size": False}),
    (slower_than_transformers, {"more tokens a second than transformers' `generate` at every batch size": False}),
    (few_without_form, {FORM: False}),
    (few_are_worse, {ANSWERS: False}),
    (other_number_of_few, {FORM: None, ANSWERS: None}),
]


@pytest.mark.parametrize(("change", "expected"), CASES, ids=[change.__name__ for change, _ in CASES])
def test_a_claim_holds_unless_its_numbers_say_otherwise(change, expected):
    from reproduction.claims import claims

    results = made_up()
    assert {claim.text: claim.holds for claim in claims(results) if claim.holds is not True} == {}
    change(results)
    assert {claim.text: claim.holds for claim in claims(results) if claim.holds is not True} == expected


def test_budgets_compare_with_the_autoregressive_model_and_not_with_multiverse_in_sequence():
    from reproduction.claims import claims

    results = json.loads(json.dumps(made_up()))  # no model shares its curves with another
    for curve in results["table_2"]["multiverse"]["budgets"]:
        if curve["mode"] == "sequential":
            curve["points"][1]["accuracy"] = estimate(0.99)
    assert all(claim.holds for claim in claims(results) if claim.source == "figure 7")


def test_every_claim_can_fail():
    from reproduction.claims import claims

    refuted = {text for _, expected in CASES for text, holds in expected.items() if holds is False}
    for one, other in (("mixed: ", "sat: "), ("sat: ", "mixed: ")):
        refuted |= {text.replace(one, other) for text in refuted}
    assert {claim.text for claim in claims(made_up())} == refuted


def test_wilson_decides_where_all_or_none_are_right():
    from reproduction.claims import interval, percent, share

    assert interval({"value": 1.0, "low": 1.0, "high": 1.0, "wilson": [0.96, 1.0]}) == (0.96, 1.0)
    assert percent(share(100, 100)) == "100% [96%, 100%]"


def test_steps_tell_a_line_from_an_exponential_and_powers_from_both():
    from reproduction.claims import Growth

    x = [2, 3, 4, 5]
    line, double = Growth.of(x, [10, 13, 16, 19]), Growth.of(x, [12, 24, 48, 96])
    assert line.steps == (3, 3, 3) and line.is_linear and not line.is_exponential
    assert double.is_exponential and not double.is_linear
    assert line.linear == pytest.approx(1) and line.exponential < 0.995
    assert double.exponential == pytest.approx(1) and double.linear < 0.95
    for power in (0.5, 2, 3):
        found = Growth.of(x, [20 + v**power for v in x])
        assert not found.is_linear and not found.is_exponential
    same = Growth.of(x, [7, 7, 7, 7])
    assert not same.is_linear and not same.is_exponential


# The page


def cells(text: str, start: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_page_of_two_seeds_says_for_each_what_holds():
    from reproduction.page import page

    results, other = made_up(), made_up()
    other["plan"]["seed"] = 1
    other["alone"] = [{"parallelism": 4.0, "speed_up": 2.0}]
    other["few"], other["against_reference"] = {}, {}  # as of a smaller size
    text = page(results, "images", [other], "../docs/")
    assert "| found (seed 0) | holds | found (seed 1) | holds |" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| figure 8a |") and "as a median" in line]
    assert line.endswith("| **no** |") and "| yes | 0.50 times" in line
    assert "\ndeepspeed launch/sft.py R\n" in text and "(../docs/prepare.md#generated-tasks)" in text
    assert "at mixed 6, sat 4, on problems" in text.replace("\n", " ")
    prose = [line for line in text.splitlines() if not line.startswith(("|", "- ", "!", "#"))]
    assert max(map(len, prose)) <= 120


def test_tables_show_each_model_in_its_own_row():
    from reproduction.page import ABLATIONS, page

    results = made_up()
    for place, (model, mode) in enumerate(
        [("base", "sequential"), ("autoregressive", "sequential"), ("multiverse", "parallel"),
         ("multiverse", "unasked")], start=1,
    ):  # fmt: skip
        measures(results, model, "test_mixed", mode)["avg"] = estimate(0.1 * place)
        measures(results, model, "test_sat", mode)["avg"] = estimate(0.1 * place + 0.01)
    measures(results, "original", "test_mixed", "parallel", "few")["avg"] = estimate(0.77)
    measures(results, "reference", "test_sat", "parallel", "few")["avg"] = estimate(0.66)
    results["against_reference"]["causal"] = [difference("test_mixed", -0.5), difference("test_sat", 0.3)]
    measures(results, "multiverse", "test_sat_3", "parallel", "growth")["critical_path_tokens"] = 50.4
    results["kinds"]["autoregressive"][0] |= {"mode": "sequential", "right": 77}
    results["kinds"]["reference"][2] |= {"right": 12}
    results["in_batches"][0]["tokens_per_second_sequential"] = 1234.4
    for name in results["few"]:
        results["kinds"][name][0]["right"] = 0  # collective
    solved_by_none = page(results, "images")
    results["kinds"]["parallel_only"][0]["right"] = 10
    text = page(results, "images")
    assert f"these solve any: {ABLATIONS['parallel_only']} (10 of 100). By kind:" in text.replace("\n", " ")
    table_2, kinds, growth, time, few, ablations = (
        text.partition(f"## {title}\n")[2].partition("\n## ")[0]
        for title in ("Accuracy (table 2)", "When to think in parallel", "Length against the number of variables",
                      "Time (figure 8)", "How few parallel examples do", "What matters")
    )  # fmt: skip
    names = ("base", "Autoregressive", "Multiverse", 'Multiverse without "in parallel"')
    shown = [[cells(table_2, name)[column][:3] for column in (1, 3)] for name in names]
    assert shown == [["10%", "11%"], ["20%", "21%"], ["30%", "31%"], ["40%", "41%"]]
    assert cells(kinds, "Autoregressive")[1] == "77 of 100" and cells(kinds, "Multiverse")[1:3] == [
        "95 of 100",
        "100 of 100",
    ]
    assert cells(growth, "3")[1:5] == ["252", "328", "50", "20%"]
    assert cells(time, "8")[1:] == ["3", "1234", "2", "1.50 [1.40, 1.60]", "1.07"]  # 500 tokens for 700
    by_count, by_kind = few.split("By kind of `mixed`:")
    assert [cells(by_count, count)[1] for count in ("100", "300", "1,000", "4,000")] == ["3.0 M"] * 4
    assert cells(by_count, "1,000")[5].startswith("66%") and cells(by_kind, "1,000")[5] == "12 of 100"
    total, of_kinds = ablations.split("By kind:")
    assert cells(total, ABLATIONS["original"])[1].startswith("77%")
    assert cells(total, ABLATIONS["causal"])[2] == "-50.0 points [-52.0, -48.0]"
    assert cells(total, ABLATIONS["fast_rows"])[2] == "+0.0 points [-2.0, +2.0]"
    assert f"- {ABLATIONS['causal']}: worse on mixed (-50), better on sat (+30)." in total
    assert f"- {ABLATIONS['fast_rows']}: no difference to be told on mixed and sat." in total
    assert cells(of_kinds, ABLATIONS["reference"])[5] == "12 of 100"
    assert cells(of_kinds, ABLATIONS["causal"])[5] == "95 of 100"
    assert "these solve any: none. By kind:" in solved_by_none.replace("\n", " ")


# The script


def test_runs_that_cannot_stand_beside_each_other_are_refused(tmp_path):
    import reproduce
    from reproduction import plan

    own = plan.as_told(plan.FULL, 0, "test")
    reproduce.refuse_unlike(own, [plan.as_told(plan.CORE, 1, "test")])
    with pytest.raises(SystemExit, match="another seed for each"):
        reproduce.refuse_unlike(own, [plan.as_told(plan.CORE, 0, "test")])
    with pytest.raises(SystemExit, match="the run of seed 1 has another held_out"):
        reproduce.refuse_unlike(own, [plan.as_told(plan.CORE, 1, "validate")])
    other = plan.as_told(plan.QUICK, 1, "test")
    with pytest.raises(SystemExit, match="the run of seed 1 has another copying_tokens, easy"):
        reproduce.refuse_unlike(own, [other])
    with pytest.raises(SystemExit, match=r"holds no finished run: there is no results\.json"):
        reproduce.earlier(tmp_path)
    (tmp_path / "results.json").write_text('{"plan": {"seed": 1}}')
    with pytest.raises(SystemExit, match="of another version of this program"):
        reproduce.earlier(tmp_path)
    (tmp_path / "results.json").write_text('{"table_2"')
    with pytest.raises(SystemExit, match=r"results\.json: not JSON .* it is damaged"):
        reproduce.earlier(tmp_path)


def test_a_folder_begun_with_another_plan_is_refused(tmp_path):
    import reproduce
    from reproduction import plan

    own = plan.as_told(plan.SMOKE, 0, "test")
    reproduce.begin(tmp_path / "r", own)
    reproduce.begin(tmp_path / "r", own)
    for name, other in (("seed", 1), ("size", {**own["size"], "timed": 99}), ("more", 1)):
        with pytest.raises(SystemExit, match=rf"was begun with another {name} \("):
            reproduce.begin(tmp_path / "r", {**own, name: other})
    assert json.loads((tmp_path / "r" / "plan.json").read_text()) == own


def test_minutes_of_a_step_that_was_cut_off_count(tmp_path, monkeypatch):
    import reproduce

    now = iter([0.0, 60.0, 100.0, 220.0])
    monkeypatch.setattr(reproduce.time, "monotonic", lambda: next(now))

    def cut_off():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce.Clock(tmp_path / "m.json")("base", cut_off)
    assert reproduce.Clock(tmp_path / "m.json")("base", lambda: 7) == 7
    assert json.loads((tmp_path / "m.json").read_text()) == {"base": 3.0}


def test_commands_are_written_down_once_and_as_they_are_typed(tmp_path, monkeypatch):
    import sys

    import commands

    monkeypatch.setattr(commands, "record", tmp_path / "commands.txt")
    for port in ("1", "2"):
        commands.run(sys.executable, "-c", "0", "--master_port", port, str(ROOT / "launch" / "sft.py"))
    assert (tmp_path / "commands.txt").read_text() == "python -c 0 launch/sft.py\n"
    (tmp_path / "commands.txt").unlink()
    with pytest.raises(SystemExit, match="failed with status 3, see its message above:\n  python -c 'raise SystemExit"):
        commands.run(sys.executable, "-c", "raise SystemExit(3)")
    assert not (tmp_path / "commands.txt").exists()
