"""`mvtrain evaluate`: what is written, that a run goes on where it was, and what a user's mistake looks like."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mvtrain.cli import main
from mvtrain.engine import Engine
from mvtrain.engine.detokenizer import token_ends
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.evaluate import evaluation as evaluation_module
from mvtrain.evaluate.config import EvaluationConfig
from mvtrain.evaluate.evaluation import Evaluation
from mvtrain.evaluate.generation import gradable_text
from mvtrain.evaluate.records import Problem, Sample, read_samples, sample_line
from mvtrain.evaluate.results import make_results
from mvtrain.evaluate.run_folder import RunFolder, cut_off_tail
from mvtrain.folders import FolderLock
from mvtrain.grammar import parse
from tests.samples import make_sample as sample
from tests.tiny import tiny_model, tiny_tokenizer

TRACE = (
    "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n<Outline>\n2: b\n</Outline>\n</Goal>\n"
    "<Path>\n1: xx\n</Path>\n<Path>\n2: yyyy\n</Path>\n<Conclusion>\nc\n</Conclusion>\n</Parallel>\n</Think>\n\n"
    "Answer: \\boxed{12}"
)
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama").save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def problems(tmp_path):
    file = tmp_path / "sums.jsonl"
    rows = [{"id": f"p{k}", "question": f"six and {k}", "answer": str(6 + k), "level": str(k)} for k in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def scripted_engine() -> Engine:
    """Writes TRACE whatever it is asked."""
    script = write_script(parse(TRACE), TOKENIZER)
    sampler = ScriptedSampler(script, len(TOKENIZER), TOKENIZER.eos_token_id)
    return Engine(tiny_model("llama"), TOKENIZER, sampler=sampler)


def some_tasks(num: int = 2, answer: str = "12") -> dict:
    return {"sums": ("sums.jsonl", [Problem("sums", f"p{k}", f"six and {k}", answer) for k in range(num)])}


OPENED: list[Evaluation] = []


def evaluation(checkpoint, folder, config=None, tasks=None, **options) -> Evaluation:
    """The one before it lets go of its folder, as its process would by ending."""
    while OPENED:
        OPENED.pop().close()
    config = config or EvaluationConfig(max_tokens=400)
    run = Evaluation(scripted_engine(), checkpoint, tasks or some_tasks(), config, str(folder), show=False, **options)
    OPENED.append(run)
    return run


def test_a_scripted_answer_is_measured(checkpoint, tmp_path):
    """Both problems have 12 as their answer but one: one right, one wrong, both well formed, 1 block of 2 paths."""
    tasks = {"sums": ("f", [Problem("sums", "a", "q", "12"), Problem("sums", "b", "q", "13")])}
    run = evaluation(checkpoint, tmp_path / "out", tasks=tasks)
    run.run()
    samples = run.samples()
    assert [s.correct for s in samples] == [True, False]
    assert all(s.well_formed and s.num_blocks == 1 and s.finish_reason == "stop" for s in samples)
    first = samples[0]
    assert first.response == parse_free(first) and first.num_generated > first.critical_path > 0
    assert first.tokens["ends"][-1] == len(first.response) and len(first.tokens["ends"]) == first.num_generated
    assert max(first.tokens["positions"]) + 1 - first.num_prompt == first.critical_path
    results = run.write_results(samples, report=False)
    (group,) = results["groups"]
    assert group["measures"]["avg"]["value"] == 0.5
    ratio = sum(s.num_generated for s in samples) / sum(s.critical_path for s in samples)
    assert group["measures"]["parallelism"]["value"] == pytest.approx(ratio)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))


def parse_free(s: Sample) -> str:
    """The response put together from its tokens' texts."""
    starts = [0, *s.tokens["ends"][:-1]]
    return "".join(s.response[a:b] for a, b in zip(starts, s.tokens["ends"], strict=True))


def test_modes_differ_in_what_runs_and_what_is_asked(checkpoint, tmp_path):
    config = EvaluationConfig(modes=("parallel", "unasked", "sequential"), max_tokens=500)
    run = evaluation(checkpoint, tmp_path / "out", config, some_tasks(1))
    run.run()
    blocks = {s.mode: s.num_blocks for s in run.samples()}
    assert blocks == {"parallel": 1, "unasked": 1, "sequential": 0}
    prompts = run.header["prompts"]
    assert "in parallel" in prompts["parallel"] and "in parallel" not in prompts["unasked"] + prompts["sequential"]
    assert "{question}" in prompts["parallel"]
    pairs = {(p["a"], p["b"]) for p in make_results(run.samples(), config)["paired"]}
    assert pairs == {("parallel", "unasked"), ("parallel", "sequential"), ("unasked", "sequential")}


def test_differences_are_first_minus_second():
    right = [sample(id=str(k), mode="parallel", correct=True) for k in range(3)]
    wrong = [sample(id=str(k), mode="sequential", correct=False) for k in range(3)]
    (pair,) = make_results(right + wrong, EvaluationConfig())["paired"]
    assert (pair["a"], pair["b"], pair["difference"]["value"]) == ("parallel", "sequential", 1.0)


def test_budgets_by_hand():
    """Ended at 10, 20 and 30 tokens, all right: a third more at each budget."""
    samples = [
        sample(id=str(k), correct=True, critical_path=10 * k, num_generated=10 * k, finish_reason="stop")
        for k in (1, 2, 3)
    ]
    config = EvaluationConfig(budgets=(5, 10, 25, 30), max_tokens=40)
    (curve,) = make_results(samples, config)["budgets"]
    assert [p["accuracy"]["value"] for p in curve["points"]] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [p["share_cut"] for p in curve["points"]] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_answers_are_forced_at_budgets(checkpoint, tmp_path):
    config = EvaluationConfig(max_tokens=400, budgets=(40, 300), policy="forced", answer_tokens=8)
    run = evaluation(checkpoint, tmp_path / "out", config, some_tasks(1))
    run.run()
    main_run, forced = run.samples()
    assert main_run.budget is None and 40 < main_run.critical_path <= 300, "it ends within the larger budget"
    assert forced.budget == 40 and "the answer was forced at the length limit" in forced.problems
    cut = forced.response.index("\n</Think>")
    assert main_run.response.startswith(forced.response[:20]) and "\\boxed{" in forced.response[cut:]
    results = run.write_results(run.samples(), report=False)
    assert {(c["policy"], len(c["points"])) for c in results["budgets"]} == {("wrong", 2), ("forced", 2)}


# Going on


def test_a_run_goes_on_with_what_is_missing(checkpoint, tmp_path, monkeypatch):
    config = EvaluationConfig(n=2, temperature=1.0, max_tokens=300)
    asked = []
    generate = evaluation_module.generate_samples

    def spy(engine, items, *rest):
        asked.append([(item.problem.id, item.sample) for item in items])
        return generate(engine, items, *rest)

    monkeypatch.setattr(evaluation_module, "generate_samples", spy)
    first = evaluation(checkpoint, tmp_path / "out", config, some_tasks(2))
    first.run()
    file = tmp_path / "out" / "samples.jsonl"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    file.write_text(lines[2] + lines[0] + lines[1][:70])  # killed in the middle of a line
    second = evaluation(checkpoint, tmp_path / "out", config, some_tasks(2))
    second.run()
    assert asked == [[("p0", 0), ("p1", 0), ("p0", 1), ("p1", 1)], [("p1", 1), ("p0", 1)][::-1]]
    assert without_times(file.read_text()) == without_times(whole)
    third = evaluation(checkpoint, tmp_path / "out", config, some_tasks(2))
    third.run()
    assert len(asked) == 2, "nothing was left to do"
    evaluation(checkpoint, tmp_path / "out", config, some_tasks(3)).run()
    assert asked[2] == [("p2", 0), ("p2", 1)], "more problems only add"


def without_times(text: str) -> list[dict]:
    """Nor what the batch around a sample changes: rounding, and when it was whose turn."""
    rows = [json.loads(line) for line in text.splitlines()]
    for row in rows:
        del row["tokens"]["logprobs"], row["tokens"]["passes"]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def test_another_run_is_refused_with_every_difference(checkpoint, tmp_path):
    evaluation(checkpoint, tmp_path / "out").run()
    with pytest.raises(ValueError, match=r"max_tokens was 400 and is 300; temperature was 0.0 and is 0.5"):
        evaluation(checkpoint, tmp_path / "out", EvaluationConfig(max_tokens=300, temperature=0.5))
    with pytest.raises(ValueError, match=r"an answer to another problem p0 of task sums than sums.jsonl"):
        evaluation(checkpoint, tmp_path / "out", tasks=some_tasks(answer="13"))
    fresh = evaluation(checkpoint, tmp_path / "out", EvaluationConfig(max_tokens=300), overwrite=True)
    assert fresh.done == {}


def test_a_changed_checkpoint_is_another_run(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_model("llama").save_pretrained(folder)
    evaluation(str(folder), tmp_path / "out").run()
    tiny_model("llama", seed=1).save_pretrained(folder)
    with pytest.raises(ValueError, match="checkpoint was"):
        evaluation(str(folder), tmp_path / "out")


def test_samples_without_a_header_are_not_taken_over(checkpoint, tmp_path):
    (tmp_path / "samples.jsonl").write_text(sample_line(sample()))
    with pytest.raises(ValueError, match=r"has samples but no run\.json"):
        evaluation(checkpoint, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        evaluation(checkpoint, tmp_path / "file")


def test_files_of_ranks_are_put_together(tmp_path):
    keys = [sample(id=str(k)).key for k in range(5)]
    for rank in range(2):
        folder = RunFolder(tmp_path, rank, 2)
        for k in range(rank, 5, 2):
            folder.add(sample(id=str(k)))
        folder.add(sample(id="0"))  # of an earlier run on other ranks
        folder.close()
    RunFolder(tmp_path).merge(keys)
    assert [s.id for s in read_samples(tmp_path / "samples.jsonl")] == ["0", "1", "2", "3", "4"]
    assert [file.name for file in tmp_path.iterdir()] == ["samples.jsonl"]


@pytest.mark.parametrize("text", ["", "a\n", "a\nb", "b" * 100_000, "a\n" + "b" * 100_000, "a\n" * 9 + "\n"])
def test_an_unfinished_line_is_cut_off(tmp_path, text):
    file = tmp_path / "file"
    file.write_text(text)
    cut_off_tail(file)
    assert file.read_text() == text[: text.rfind("\n") + 1]


def test_one_evaluation_at_a_time_in_a_folder(checkpoint, tmp_path):
    first = evaluation(checkpoint, tmp_path / "out")
    engine, config = scripted_engine(), EvaluationConfig(max_tokens=400)
    with pytest.raises(ValueError, match="another evaluation works here"):
        Evaluation(engine, checkpoint, some_tasks(), config, str(tmp_path / "out"), show=False)
    assert main(["evaluate", "report", str(tmp_path / "out")]) == 2
    with pytest.raises(ValueError, match="another evaluation works here"):
        FolderLock(tmp_path / "out", "evaluation")
    first.close()
    assert not (tmp_path / "out" / ".lock").exists()
    second = evaluation(checkpoint, tmp_path / "out")
    second.run()
    (tmp_path / "out" / "samples.jsonl").write_text("")
    with pytest.raises(ValueError, match="2 samples are not in"):
        second._finish()
    second.close()


def test_samples_differ_by_their_seeds(checkpoint, tmp_path):
    """Sampled for real: other seeds write other texts, and the same seed writes the same one again."""
    config = EvaluationConfig(n=3, temperature=1.0, max_tokens=12, seed=40)
    texts = []
    for name in ("a", "b"):
        engine = Engine(tiny_model("llama"), TOKENIZER)
        run = Evaluation(engine, checkpoint, some_tasks(1), config, str(tmp_path / name), show=False)
        run.run()
        assert [s.seed for s in run.samples()] == run.header["seeds"] == [40, 41, 42]
        texts.append([s.response for s in run.samples()])
        run.close()
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_runs_in_one_folder_add_up(checkpoint, tmp_path, capsys):
    """Results, and `evaluate report`, are of all that the folder has, also where the last run asked for less."""
    out = tmp_path / "out"
    wide = EvaluationConfig(modes=("parallel", "sequential"), max_tokens=400, budgets=(40, 100))
    narrow = EvaluationConfig(max_tokens=400, budgets=(60,), policy="forced", answer_tokens=8)
    for config, tasks in ((wide, some_tasks(3)), (narrow, some_tasks(1))):
        run = evaluation(checkpoint, out, config, tasks, verified={"ok": True} if config is wide else "skipped")
        run.run()
        results = run.write_results(run.samples(), report=False)
        run.close()
    assert [(g["mode"], g["num_problems"]) for g in results["groups"]] == [("parallel", 3), ("sequential", 3)]
    header = json.loads((out / "run.json").read_text())
    assert header["sampling"]["budgets"] == [40, 60, 100] and header["sampling"]["policy"] == "forced"
    assert header["tasks"]["sums"]["num_problems"] == 3 and len(header["sessions"]) == 2
    assert header["verified"] == "skipped", "one of the two was not verified"
    forced = [(c["mode"], [p["budget"] for p in c["points"]]) for c in results["budgets"] if c["policy"] == "forced"]
    assert forced == [("parallel", [100]), ("sequential", [60, 100])], "only where no answer is missing"
    assert main(["evaluate", "report", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(results))


def test_tokens_per_second_are_those_of_the_main_runs():
    timings = [
        {"task": "sums", "mode": "parallel", "num_generated": 600, "seconds": 2.0},
        {"task": "sums", "mode": "parallel", "num_generated": 300, "seconds": 1.0},
        {"task": "sums", "mode": "sequential", "num_generated": 900, "seconds": 9.0},
    ]
    (group,) = make_results([sample()], EvaluationConfig(), timings)["groups"]
    assert group["measures"]["tokens_per_second"] == 300


def test_forced_batches_do_not_count_as_speed(checkpoint, tmp_path):
    config = EvaluationConfig(max_tokens=400, budgets=(40,), policy="forced", answer_tokens=8)
    run = evaluation(checkpoint, tmp_path / "out", config, some_tasks(1))
    run.run()
    main_run, forced = run.header["timings"]
    assert main_run["budget"] is None and forced["budget"] == 40
    measures = run.write_results(run.samples(), report=False)["groups"][0]["measures"]
    assert measures["tokens_per_second"] == pytest.approx(main_run["num_generated"] / main_run["seconds"])
    run.close()


@pytest.mark.parametrize(
    ("response", "reason", "forced", "graded"),
    [
        (r"Try \boxed{5}. Wait, let me che", "length", False, ""),
        (r"Try \boxed{5}.", "stop", False, r"Try \boxed{5}."),
        (r"<Think>a</Think> \boxed{5} and", "length", False, r"<Think>a</Think> \boxed{5} and"),
        (r"a \boxed{5} b", "length", True, r"a \boxed{5} b"),
        (r"Try \boxed{5}.", "cancelled", False, ""),
    ],
)
def test_cut_off_text_is_not_lucky(response, reason, forced, graded):
    assert gradable_text(response, reason, forced) == graded


def test_an_answer_that_ends_in_its_second_run_is_not_cut():
    """Rounding may let it: then it is what it is, and not an answer that was forced."""
    whole = sample(critical_path=30, num_generated=30)
    ended = sample(critical_path=9, num_generated=9, budget=10)
    forced = sample(
        critical_path=14, num_generated=14, budget=10, problems=["the answer was forced at the length limit"]
    )
    config = EvaluationConfig(budgets=(10,), policy="forced", max_tokens=40)
    shares = []
    for second in (ended, forced):
        curves = make_results([whole, second], config)["budgets"]
        shares.append(next(c for c in curves if c["policy"] == "forced")["points"][0]["share_cut"])
    assert shares == [0, 1]


# Records


def test_a_sample_comes_back_as_it_was(tmp_path):
    odd = sample(response="line\nbreak \ud800 é 😀", problems=["a", "b"], correct=None, answer=None)
    (tmp_path / "s.jsonl").write_text(sample_line(odd) + sample_line(sample()) + '{"task": "cut')
    assert list(read_samples(tmp_path / "s.jsonl")) == [odd, sample()]
    (tmp_path / "s.jsonl").write_text(sample_line(odd) + "{}\n")
    with pytest.raises(ValueError, match="line 2: not a sample"):
        list(read_samples(tmp_path / "s.jsonl"))


@pytest.mark.parametrize("text", ["plain", "é😀x", "<Path>\n1: añb</Path>", "\ufffd x"])
def test_token_ends(text):
    ids = TOKENIZER(text)["input_ids"]
    ends = token_ends(ids, text, lambda some: TOKENIZER.decode(some, skip_special_tokens=False))
    assert ends == sorted(ends) and ends[-1] == len(text) and len(ends) == len(ids)
    for i in range(1, len(ids) + 1):  # the brute force: decode from the start every time
        whole = TOKENIZER.decode(ids[:i], skip_special_tokens=False)
        if not whole.endswith("\ufffd"):
            assert ends[i - 1] == len(whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modes": ("parallel", "fast")}, "choose of parallel, unasked, sequential"),
        ({"modes": ()}, "modes none"),
        ({"n": 0}, "n is 0"),
        ({"n": 2}, "n is 2 at temperature 0"),
        ({"budgets": (10, 5000)}, "expected 1 to 4096"),
        ({"policy": "guess"}, "choose one of wrong, forced"),
        ({"temperature": -1.0}, "temperature = -1.0"),
    ],
)
def test_configurations_that_mean_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**values)


# The commands


def test_the_command_from_end_to_end(checkpoint, problems, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["evaluate", checkpoint, "--task", problems, "--limit", "3", "--max-tokens", "6", "--out", str(out)]
    command += ["--modes", "parallel,sequential", "--budgets", "3,6", "--json"]
    assert main([*command, "--alone", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [g["mode"] for g in report["groups"]] == ["parallel", "sequential"]
    assert report["groups"][0]["num_problems"] == 3 and report["groups"][0]["measures"]["truncated"] == 1
    assert report["alone"][0]["num_problems"] == 1 and report["alone"][0]["seconds_median"] > 0
    header = json.loads((out / "run.json").read_text())
    assert header["verified"]["ok"] is True and header["tasks"]["sums"]["num_problems"] == 3
    assert header["versions"]["torch"] and header["seeds"] == [0] and header["timings"][0]["num_samples"] == 3
    assert {file.name for file in out.iterdir()} == {
        "run.json", "samples.jsonl", "results.json", "report.html", "report.md",
    }  # fmt: skip
    before = (out / "results.json").read_text()
    assert main(["evaluate", "report", str(out)]) == 0 and "Accuracy" in capsys.readouterr().out
    assert (out / "results.json").read_text() == before
    assert main(["evaluate", "compare", str(out), str(out)]) == 0
    assert "sums" in capsys.readouterr().out


def test_regrading_changes_what_was_graded_wrong(checkpoint, problems, tmp_path, capsys):
    out = tmp_path / "run"
    assert (
        main(["evaluate", checkpoint, "--task", problems, "--max-tokens", "6", "--out", str(out), "--no-report"]) == 0
    )
    file = out / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1].update(response="Answer: \\boxed{7}", finish_reason="stop")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["evaluate", "regrade", str(out), "--dry-run", "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert (change["id"], change["before"], change["after"]) == ("p1", False, True)
    assert [s.correct for s in read_samples(file)].count(True) == 0
    assert main(["evaluate", "regrade", str(out), "--no-report"]) == 0
    assert "sums p1, parallel, sample 0: wrong -> right" in capsys.readouterr().out
    assert [s.correct for s in read_samples(file)].count(True) == 1
    assert json.loads((out / "results.json").read_text())["groups"][0]["measures"]["avg"]["value"] == 0.25


def test_an_interrupted_run_keeps_what_it_has(checkpoint, problems, tmp_path):
    """Ctrl-C after the first sample: the file has whole lines, and the same command ends with all of them."""
    code = (
        "import sys, os, signal\n"
        "from mvtrain.evaluate import run_folder\n"
        "add = run_folder.RunFolder.add\n"
        "def once(self, sample):\n"
        "    add(self, sample)\n"
        "    if not os.environ.pop('DONE', ''): os.kill(os.getpid(), signal.SIGINT)\n"
        "run_folder.RunFolder.add = once\n"
        "from mvtrain.cli import main\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    sys.exit(main(sys.argv[1:]))\n"
    )
    program = tmp_path / "interrupted.py"
    program.write_text(code)
    out = tmp_path / "run"
    command = ["evaluate", checkpoint, "--task", problems, "--max-tokens", "6", "--out", str(out), "--no-report"]
    command += ["--batch-size", "1"]
    done = subprocess.run([sys.executable, str(program), *command], capture_output=True, text=True)
    assert done.returncode == 130 and "interrupted" in done.stderr and "Traceback" not in done.stderr
    kept = list(read_samples(out / "samples.jsonl"))
    assert 1 <= len(kept) < 4
    assert main(command) == 0
    assert len(list(read_samples(out / "samples.jsonl"))) == 4


def test_an_engine_that_differs_from_training_measures_nothing(checkpoint, problems, tmp_path, capsys, monkeypatch):
    from mvtrain.engine import row_cache

    out = tmp_path / "run"
    command = ["evaluate", checkpoint, "--task", problems, "--max-tokens", "3", "--out", str(out), "--no-report"]
    mask = row_cache.RowCache._mask
    monkeypatch.setattr(row_cache.RowCache, "_mask", lambda *args: mask(*args).zero_())
    assert main(command) == 2
    assert "engine and training differ" in capsys.readouterr().err and not out.exists()
    assert main([*command, "--no-verify"]) == 0
    assert json.loads((out / "run.json").read_text())["verified"] == "skipped"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no task; give --task"),
        (["--task", "no-such-task"], "no such file, and no task of that name"),
        (["--task", "{problems}", "--limit", "0"], "expected at least 1"),
        (["--task", "{problems}", "--budgets", "1k"], "expected numbers of tokens"),
        (["--task", "{problems}", "--task", "{problems}"], "two tasks are called sums"),
        (["--task", "{problems}", "--modes", "fast"], "choose of parallel"),
        (["--task", "math500", "--data-dir", "/nowhere"], "no local copy of math500"),
        (["--task", "{problems}", "--alone", "-1"], "--alone -1: expected at least 0"),
        (["--task", "{problems}", "--batch-size", "0"], "--batch-size 0: expected at least 1"),
    ],
)
def test_mistakes_are_one_line(checkpoint, problems, arguments, message, capsys, tmp_path):
    arguments = [argument.format(problems=problems) for argument in arguments]
    assert main(["evaluate", checkpoint, "--out", str(tmp_path / "run"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and not (tmp_path / "run").exists()


def test_a_question_that_is_too_long_is_named(checkpoint, tmp_path, capsys):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"id": "x9", "question": "w" * 9000, "answer": "1"}) + "\n")
    assert main(["evaluate", checkpoint, "--task", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "task long, problem x9: a prompt of" in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_sides_of_a_comparison_have_names_of_their_own(checkpoint, problems, tmp_path, capsys):
    for name in ("a/run", "b/run"):
        flags = ["--task", problems, "--max-tokens", "6", "--no-report", "--no-verify"]
        assert main(["evaluate", checkpoint, *flags, "--out", str(tmp_path / name)]) == 0
    a, b = str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")
    capsys.readouterr()
    assert main(["evaluate", "compare", a, b]) == 0
    assert f"{a} (parallel)" in (out := capsys.readouterr().out) and f"{b} (parallel)" in out
    assert main(["evaluate", "compare", a, f"{b}:paralel"]) == 2
    assert "no mode is called 'paralel'; choose one of parallel" in capsys.readouterr().err


def test_folders_that_are_no_evaluation(tmp_path, capsys):
    for command in (["report"], ["regrade"], ["compare", str(tmp_path)]):
        assert main(["evaluate", *command, str(tmp_path)]) == 2
        assert "is no evaluation" in capsys.readouterr().err


def test_prepare_refuses_an_empty_count(tmp_path, capsys):
    assert main(["prepare", "synthetic", str(tmp_path / "x.jsonl"), "--count", "0"]) == 2
    assert "expected at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
