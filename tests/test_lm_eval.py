"""The engine under lm-eval: a task of the harness runs on it, and likelihoods are those of transformers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from mvtrain.engine import Engine
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.grammar import parse
from tests.test_evaluate import TRACE
from tests.tiny import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval")
from mvtrain.evaluate.lm_eval_model import MultiverseLM, _answer

TOKENIZER = tiny_tokenizer()


def requests(*args):
    return [SimpleNamespace(args=pair) for pair in args]


def scripted() -> Engine:
    script = write_script(parse(TRACE), TOKENIZER)
    sampler = ScriptedSampler(script, len(TOKENIZER), TOKENIZER.eos_token_id)
    return Engine(tiny_model("llama"), TOKENIZER, sampler=sampler)


def task(tmp_path, name: str, **options) -> dict:
    """A task of the harness on a local file of two problems; the scripted answer to both is 12."""
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps({"question": f"six and {k}", "answer": f"{6 + k}"}) + "\n" for k in (6, 7)))
    return {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", **options,
    }  # fmt: skip


def test_a_task_of_the_harness_runs_on_the_engine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    config = task(
        tmp_path, "sums", output_type="generate_until", generation_kwargs={"until": ["\n\n"], "do_sample": False},
        filter_list=[{"name": "boxed", "filter": [{"function": "regex", "regex_pattern": r"boxed\{(.*?)\}"},
                                                  {"function": "take_first"}]}],
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    lm = MultiverseLM(scripted(), max_tokens=400)
    results = simple_evaluate(model=lm, tasks=[config], task_manager=TaskManager(include_defaults=False))
    assert results["results"]["sums"]["exact_match,boxed"] == 0.5
    assert [row["resps"][0][0].strip() for row in results["samples"]["sums"]] == ["Answer: \\boxed{12}"] * 2


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_likelihoods_are_those_of_transformers(family):
    model = tiny_model(family, dtype=torch.float64)
    lm = MultiverseLM(Engine(model, TOKENIZER))
    pairs = [("the sky is", " blue"), ("", "abc"), ("x", ""), ("one two", " three four")]
    for (context, continuation), (total, greedy) in zip(pairs, lm.loglikelihood(requests(*pairs)), strict=True):
        before = TOKENIZER(context)["input_ids"] or [TOKENIZER.eos_token_id]
        ids = torch.tensor([before + TOKENIZER(continuation)["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].log_softmax(-1)
        rows = range(len(before) - 1, ids.shape[1] - 1)
        expected = sum(logprobs[row, ids[0, row + 1]].item() for row in rows)
        assert total == pytest.approx(expected, abs=1e-4)
        assert greedy is all(logprobs[row].argmax() == ids[0, row + 1] for row in rows)
    assert lm.loglikelihood_rolling(requests(("abc",)))[0] == pytest.approx(
        lm.loglikelihood(requests(("", "abc")))[0][0]
    )


def test_paths_do_not_see_each_other_in_likelihoods():
    lm = MultiverseLM(Engine(tiny_model(dtype=torch.float64), TOKENIZER))
    start = "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>\n<Path>1: "
    first, other = (f"{start}{text}</Path>\n<Path>2: " for text in ("xx", "yy"))
    close = "seven</Path>\n<Conclusion></Conclusion></Parallel>"
    a, b = (lm.loglikelihood(requests((context, close[:5])))[0][0] for context in (first, other))
    closed_a, closed_b = (lm.loglikelihood(requests((context, close)))[0][0] for context in (first, other))
    assert a != b, "an open block is read as causal text"
    assert closed_a != closed_b, "the conclusion sees both paths"


@pytest.mark.parametrize(
    ("response", "until", "answer"),
    [
        ("<Think>a</Think>\n\nAnswer: 5\n\nMore", ["\n\n"], "Answer: 5\n\nMore"),
        ("<Think>a</Think>\n\nAnswer: 5 Question: 6", ["Question:"], "Answer: 5 "),
        ("<Think>cut off 5", [], ""),
        ("plain 5", [], "plain 5"),
        ("plain 5</s> x", "</s>", "plain 5"),
    ],
)
def test_what_is_handed_over(response, until, answer):
    assert _answer(response, until) == answer


def test_templates_and_repeats():
    engine = Engine(tiny_model("llama"), TOKENIZER)
    lm = MultiverseLM(engine, mode="unasked", max_tokens=12, temperature=1.0)
    history = [{"role": "user", "content": "why?"}]
    text = lm.apply_chat_template(history)
    assert text.endswith("assistant\n") and "Think step by step before answering." in text
    assert history[0]["content"] == "why?"
    one, two = lm.generate_until(requests((text, {}), (text, {})), disable_tqdm=True)
    assert one != two, "repeats have noise of their own"
    assert lm.generate_until(requests((text, {}), (text, {})), disable_tqdm=True) == [one, two]
    assert lm.generate_until(requests((text, {"do_sample": False})), disable_tqdm=True)[0] not in (one, two)
    with pytest.raises(ValueError, match="unknown mode"):
        MultiverseLM(engine, mode="fast")
