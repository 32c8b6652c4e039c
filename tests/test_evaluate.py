"""`mvtrain evaluate` and `mvtrain prepare`: what is counted, and what a user's mistake looks like."""

import json

import pytest

from mvtrain.cli import main
from mvtrain.evaluate.benchmark import Sample, read_problems, run_benchmark, summarise
from mvtrain.grammar import parse
from tests.tiny import tiny_model, tiny_tokenizer

TRACE = (
    "<Think>\n<Parallel>\n<Goal>\n<Outline>\n1: a\n</Outline>\n<Outline>\n2: b\n</Outline>\n</Goal>\n"
    "<Path>\n1: xx\n</Path>\n<Path>\n2: yyyy\n</Path>\n<Conclusion>\nc\n</Conclusion>\n</Parallel>\n</Think>\n\n"
    "Answer: \\boxed{12}"
)


def sample(**changes) -> Sample:
    fields = {
        "id": "1", "question": "q", "response": "", "answer": "1", "reference": "1", "correct": True,
        "well_formed": True, "num_blocks": 1, "finish_reason": "stop", "num_generated": 30, "critical_path": 10,
        "problems": (),
    }  # fmt: skip
    return Sample(**{**fields, **changes})


def test_summary_by_hand():
    samples = [
        sample(),
        sample(correct=False, well_formed=False, num_generated=10, critical_path=10, num_blocks=0),
        sample(correct=None, finish_reason="length", num_generated=20, critical_path=10),
        sample(),
    ]
    summary = summarise(samples, seconds=8.0)
    assert summary.accuracy == 0.5 and summary.ungradable == 0.25
    assert summary.well_formed == 0.75 and summary.with_blocks == 0.75 and summary.truncated == 0.25
    assert summary.parallelism == 90 / 40
    assert summary.generated_tokens == 22.5 and summary.critical_path_tokens == 10
    assert summary.seconds_per_problem == 2.0


def test_a_scripted_answer_is_measured(tmp_path):
    """The engine is made to write a trace: one problem right, one wrong, both well formed with one block."""
    from mvtrain.engine import Engine
    from mvtrain.engine.script import ScriptedSampler, write_script

    tokenizer = tiny_tokenizer()
    script = write_script(parse(TRACE), tokenizer)
    engine = Engine(
        tiny_model("llama"), tokenizer, sampler=ScriptedSampler(script, len(tokenizer), tokenizer.eos_token_id)
    )
    problems_file = tmp_path / "problems.jsonl"
    rows = [{"question": "six and six", "answer": "12"}, {"problem": "seven and six", "answer": "#### 13"}]
    problems_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    from mvtrain.engine import SamplingParams

    samples, seconds = run_benchmark(engine, read_problems(problems_file), SamplingParams(max_tokens=300))
    assert [s.correct for s in samples] == [True, False]
    assert all(s.well_formed and s.num_blocks == 1 for s in samples)
    assert samples[0].num_generated > samples[0].critical_path > 0 and seconds > 0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_the_command_prints_one_json_object_and_writes_samples(checkpoint, tmp_path, capsys):
    problems_file, samples_file = tmp_path / "problems.jsonl", tmp_path / "samples.jsonl"
    assert main(["prepare", "synthetic", str(problems_file), "--count", "3", "--seed", "7"]) == 0
    capsys.readouterr()
    command = ["evaluate", checkpoint, "--problems", str(problems_file), "--limit", "2", "--max-tokens", "5"]
    assert main([*command, "--alone", "1", "--samples", str(samples_file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_problems"] == 2 and report["accuracy"] == 0 and report["truncated"] == 1
    assert report["num_timed_alone"] == 1 and report["seconds_alone_median"] > 0
    assert len(samples_file.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", "line 2: not JSON"),
        ('{"question": "q"}', "line 2: expected the fields"),
        ("[1]", "line 2: expected the fields"),
    ],
)
def test_bad_problem_files_are_named_by_line(tmp_path, capsys, line, message):
    file = tmp_path / "problems.jsonl"
    file.write_text('{"question": "q", "answer": "1"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_problems(file)
    with pytest.raises(ValueError, match="expected at least 1"):
        read_problems(file, limit=0)
    assert main(["evaluate", "nowhere", "--problems", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_prepare_refuses_an_empty_count(tmp_path, capsys):
    assert main(["prepare", "synthetic", str(tmp_path / "x.jsonl"), "--count", "0"]) == 2
    assert "expected at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_engine_that_differs_from_training_measures_nothing(checkpoint, tmp_path, capsys, monkeypatch):
    from mvtrain.engine import row_cache

    problems_file = tmp_path / "problems.jsonl"
    problems_file.write_text('{"question": "q", "answer": "1"}\n')
    command = ["evaluate", checkpoint, "--problems", str(problems_file), "--max-tokens", "3", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verified"] == "float32" and 0 < report["max_difference_to_training"] < 1e-3
    mask = row_cache.RowCache._mask
    monkeypatch.setattr(row_cache.RowCache, "_mask", lambda *args: mask(*args).zero_())
    assert main(command) == 2
    assert "engine and training differ" in capsys.readouterr().err
    assert main([*command, "--no-verify"]) == 0
    assert "verified" not in json.loads(capsys.readouterr().out)
