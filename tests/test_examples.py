"""Examples: the loss covers the assistant's turn and nothing else, and policies count what they leave out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mvtrain.data.examples import build_examples, end_of_turn_ids
from mvtrain.data.sources import Record, RowError, read_records
from mvtrain.grammar import parse, render
from mvtrain.prompt import prompt_ids
from tests.tiny import tiny_tokenizer

TRACE = """<Think>
Two things.
<Parallel>
<Goal>
<Outline>1: first</Outline>
<Outline>
2: second
</Outline>
</Goal>
<Path>
1: one é
</Path>
<Path>
2: two
</Path>
<Conclusion>
Both.
</Conclusion>
</Parallel>
So.
</Think>"""
REAL = Path(__file__).parents[1].parent / "shared" / "data" / "traces.jsonl"


def record(trajectory=TRACE, answer="It is \\boxed{3}", kind="parallel", where="rows.jsonl row 1", **rest):
    return Record("What is it?", trajectory, answer, kind, where, **rest)


def target_text(example, tokenizer):
    return tokenizer.decode(example.input_ids[example.prompt_length :].tolist(), skip_special_tokens=False)


def test_targets_decode_to_the_assistants_turn():
    tokenizer = tiny_tokenizer()
    (example,), report = build_examples([record()], tokenizer)
    assert target_text(example, tokenizer) == TRACE + "\n\nAnswer: It is \\boxed{3}<|im_end|>"
    prompt = tokenizer.decode(example.input_ids[: example.prompt_length].tolist(), skip_special_tokens=False)
    assert prompt == (
        "<|im_start|>user\nWhat is it? Think step by step and in parallel before answering.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert example.input_ids.dtype == np.int32
    # One token a byte, one a tag: 16 tags; é is two bytes.
    tags = sum(TRACE.count(tag) for tag in set(tokenizer.all_special_tokens))
    assert tags == 16
    text = TRACE + "\n\nAnswer: It is \\boxed{3}"
    no_tags = text
    for tag in tokenizer.all_special_tokens:
        no_tags = no_tags.replace(tag, "")
    assert example.num_targets == report.num_targets == len(no_tags.encode()) + tags + 1
    assert example.num_tokens == report.num_tokens == example.prompt_length + example.num_targets


def test_prompt_is_that_of_generation_and_follows_the_kind():
    tokenizer = tiny_tokenizer()
    records = [record(), record("<Think>\nHm.\n</Think>", kind="sequential"), record(TRACE, None)]
    examples, _ = build_examples(records, tokenizer)
    for example, parallel in zip(examples, (True, False, True), strict=True):
        prompt = prompt_ids(tokenizer, "What is it?", parallel)
        assert example.input_ids[: example.prompt_length].tolist() == prompt
    assert "in parallel" not in tokenizer.decode(examples[1].input_ids.tolist())
    assert target_text(examples[2], tokenizer) == TRACE + "<|im_end|>"


def test_the_end_of_turn_is_a_target_though_it_is_the_padding_token():
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (example,), _ = build_examples([record()], tokenizer)
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert example.num_targets == example.num_tokens - example.prompt_length


def test_end_of_turn_follows_the_template():
    tokenizer = tiny_tokenizer()
    assert end_of_turn_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} <|im_start|>\n{% endfor %}"
    assert end_of_turn_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_start|>")]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert end_of_turn_ids(tokenizer) == [tokenizer.eos_token_id], "a template without an end falls back on eos"
    tokenizer.chat_template = None
    assert end_of_turn_ids(tokenizer) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a chat template that ends a turn nor an eos_token"):
        end_of_turn_ids(tokenizer)


def test_text_stays_as_it_is_but_for_lower_case_think():
    tokenizer = tiny_tokenizer()
    lower = TRACE.replace("<Think>", "<think>").replace("</Think>", "</think>")
    (example,), _ = build_examples([record(lower, None)], tokenizer)
    assert target_text(example, tokenizer) == TRACE + "<|im_end|>"


def test_white_space_around_a_trajectory_is_dropped_where_an_answer_follows():
    tokenizer = tiny_tokenizer()
    (example,), _ = build_examples([record(f" \n{TRACE} \n", " Answer: 3\n")], tokenizer)
    assert target_text(example, tokenizer) == TRACE + "\n\nAnswer: 3<|im_end|>"


def test_canonical_text_on_demand():
    tokenizer = tiny_tokenizer()
    (example,), _ = build_examples([record(answer=None)], tokenizer, canonical=True)
    text = target_text(example, tokenizer)
    assert text == render(parse(TRACE)) + "<|im_end|>" and text != TRACE + "<|im_end|>"
    assert parse(text.removesuffix("<|im_end|>")) == parse(TRACE)


def test_ready_chatml_is_used_as_it_is():
    tokenizer = tiny_tokenizer()
    before = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWell?<|im_end|>\n"
    )
    ready = record(TRACE, None, prompt=before + "<|im_start|>assistant\n")
    (example,), _ = build_examples([ready], tokenizer)
    assert target_text(example, tokenizer) == TRACE + "<|im_end|>"
    whole = tokenizer(before + "<|im_start|>assistant\n" + TRACE + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert example.input_ids.tolist() == whole
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|im_start|>{% endfor %}"
    with pytest.raises(ValueError, match="is ChatML, but the tokenizer's turns end in"):
        build_examples([ready], tokenizer)


def unclosed(where):
    return record(TRACE.replace("</Path>\n<Conclusion>", "<Conclusion>"), where=where)


def test_a_malformed_trace_stops_with_its_place():
    with pytest.raises(RowError) as caught:
        build_examples([record(), unclosed("rows.jsonl row 2")], tiny_tokenizer())
    line = TRACE.split("\n").index("<Conclusion>")  # one line is missing before it, lines count from 1
    assert str(caught.value).startswith(f"rows.jsonl row 2: line {line}, column 1: ")
    assert "expected" in str(caught.value)


def test_malformed_rows_are_counted_by_reason():
    records = [
        unclosed("rows.jsonl row 1"),
        record(where="rows.jsonl row 2"),
        unclosed("rows.jsonl row 3"),
        RowError("rows.jsonl row 4", "column 'question' is empty", "column 'question' empty"),
        record("Ends.<|im_end|> Not yet.", where="rows.jsonl row 5"),
        Record("Why <Path>?", TRACE, None, "parallel", "rows.jsonl row 6"),
        record("A chain with a <Parallel> in it", kind="sequential", where="rows.jsonl row 7"),
        record(answer=None, prompt="Is <Path> a tag?", where="rows.jsonl row 8"),
    ]
    examples, report = build_examples(records, tiny_tokenizer(), malformed="skip")
    assert [example.where for example in examples] == ["rows.jsonl row 2"]
    assert (report.num_rows, report.num_kept, report.num_skipped, report.num_dropped) == (8, 1, 7, 0)
    assert sorted(report.skipped.values()) == [1, 1, 1, 1, 1, 2]
    assert report.skipped["column 'question' empty"] == 1
    assert [problem.split(":")[0] for problem in report.problems] == [
        f"rows.jsonl row {n}" for n in (1, 3, 4, 5, 6, 7, 8)
    ]
    assert "1 of 8 rows kept (1 parallel)" in report.summary() and "2 skipped: " in report.summary()
    for bad in records[:1] + records[3:]:
        with pytest.raises(RowError, match=r"rows\.jsonl row \d: "):
            build_examples([bad], tiny_tokenizer())


def test_an_example_longer_than_the_context_is_dropped_or_refused_never_cut():
    tokenizer = tiny_tokenizer()
    short, long = record("<Think>\nHm.\n</Think>"), record(where="rows.jsonl row 2")
    (whole,), _ = build_examples([long], tokenizer)
    exact, report = build_examples([short, long], tokenizer, context=whole.num_tokens)
    assert len(exact) == 2 and report.num_dropped == 0 and report.longest == whole.num_tokens
    kept, report = build_examples([short, long], tokenizer, context=whole.num_tokens - 1)
    assert [example.where for example in kept] == ["rows.jsonl row 1"] and report.num_dropped == 1
    assert report.problems == [f"rows.jsonl row 2: {whole.num_tokens} tokens, the context holds {whole.num_tokens - 1}"]
    assert "1 dropped: longer than the context" in report.summary()
    with pytest.raises(RowError, match=f"row 2: {whole.num_tokens} tokens"):
        build_examples([short, long], tokenizer, context=whole.num_tokens - 1, too_long="error")


def test_batches_and_progress_change_nothing(monkeypatch, capsys):
    records = [record(where=f"rows.jsonl row {n}") if n % 3 else unclosed(f"rows.jsonl row {n}") for n in range(1, 20)]
    one = build_examples(records, tiny_tokenizer(), malformed="skip")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("mvtrain.data.examples.BATCH_SIZE", 4)
    many = build_examples(iter(records), tiny_tokenizer(), malformed="skip", progress=True)
    assert one[1] == many[1]
    assert [(e.where, e.input_ids.tolist()) for e in one[0]] == [(e.where, e.input_ids.tolist()) for e in many[0]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="the tokenizer has no token for <Think>"):
        build_examples([], tiny_tokenizer(with_tags=False))
    with pytest.raises(ValueError, match="malformed must be error or skip, not 'ignore'"):
        build_examples([], tiny_tokenizer(), malformed="ignore")
    with pytest.raises(ValueError, match="too_long must be drop or error, not 'cut'"):
        build_examples([], tiny_tokenizer(), too_long="cut")


@pytest.mark.skipif(not REAL.exists(), reason="no real traces beside the checkout (../shared/data/traces.jsonl)")
def test_real_responses():
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    malformed = [number for number, row in enumerate(rows, 1) if row["kind"] == "malformed"]
    assert len(malformed) == 21
    tokenizer = tiny_tokenizer()
    records = list(read_records(REAL, "parallel"))
    examples, report = build_examples(records, tokenizer, malformed="skip", context=10**6)
    assert (report.num_rows, report.num_kept, report.num_skipped) == (67, 46, 21)
    refused = [int(problem.split(" row ")[1].split(":")[0]) for problem in report.problems]
    assert refused == malformed
    kept = [row["response"] for row in rows if row["kind"] != "malformed"]
    for example, response in zip(examples, kept, strict=True):
        assert target_text(example, tokenizer) == response + "<|im_end|>"
    with pytest.raises(RowError, match=rf"traces\.jsonl row {malformed[0]}: line \d+, column \d+: "):
        build_examples(records, tokenizer)


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    rows = [{"question": "What is it?", "response": text} for text in (TRACE, "Two.", "<Path>")]
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    names = {"tokenizer": tiny_tokenizer()}
    exec(code, names)
    assert "2 of 3 rows kept (2 parallel)" in capsys.readouterr().out
    assert len(names["plan"]) == 2 and names["batch"].num_targets == names["report"].num_targets
