"""Events: put together, they are the text of every branch, and they come in an order that can be followed."""

from __future__ import annotations

import json

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.script import ScriptedSampler, write_script
from tests.engine_models import EOS, TOKENIZER, Noise, WritesBlocks, random_trace
from tests.tiny import tiny_model


def follow(events) -> tuple[dict, list]:
    """The text of every branch, and the completions; checks that nothing comes out of order."""
    texts: dict[tuple, str] = {}
    open_blocks: set[tuple] = set()
    ended: set[tuple] = set()
    completions = {}
    for event in events:
        key = (event.request, event.branch)
        assert event.request not in completions, "nothing comes after the end"
        json.dumps(event.as_dict())
        if event.kind == "fork":
            open_blocks.add((*key, event.block))
            texts |= {(event.request, (*event.branch, event.block, k)): "" for k in range(len(event.paths))}
        elif event.kind == "join":
            open_blocks.remove((*key, event.block))
            paths = [k for k in texts if k[0] == event.request and k[1][:-1] == (*event.branch, event.block)]
            assert paths and all(path in ended for path in paths), "a block joins when all its paths have ended"
        elif event.kind == "end":
            ended.add(key)
            assert event.reason and event.label
        elif event.kind == "finish":
            completions[event.request] = event.completion
        else:
            assert key not in ended and event.num_tokens > 0
            assert key in texts or event.branch == (), "a path speaks after its fork"
            assert not any(b[:2] == key for b in open_blocks), "a branch waits while its paths are open"
            texts[key] = texts.get(key, "") + event.text
    return texts, [completions[k] for k in sorted(completions)]


@pytest.mark.parametrize("scheme", ["isolated", "original"])
def test_the_pieces_of_a_nested_trace_are_its_text(scheme):
    for seed in range(4):
        trace = random_trace(seed)
        sampler = ScriptedSampler(write_script(trace, TOKENIZER), len(TOKENIZER), EOS)
        subject = Engine(tiny_model(), TOKENIZER, scheme, sampler=sampler)
        params = SamplingParams(max_tokens=2000, max_total_tokens=9000)
        texts, (completion,) = follow(subject.stream([[1, 2, 3]], params))
        assert completion.trace == trace
        for number, branch in enumerate(completion.branches):
            ids = [id for id, at in zip(completion.token_ids, completion.token_branches, strict=True) if at == number]
            assert texts[0, branch.lineage] == TOKENIZER.decode(ids)
        assert len(texts) == len(completion.branches)


def test_many_requests_with_broken_structure_and_the_same_answers_as_generate():
    params = [SamplingParams(max_tokens=80, max_total_tokens=300, seed=s, n=1 + s % 2) for s in range(12)]
    prompts = [[1 + k] for k in range(12)]
    subjects = [Engine(tiny_model(), TOKENIZER, cache_tokens=1024, sampler=Noise(len(TOKENIZER))) for _ in range(2)]
    texts, completions = follow(subjects[0].stream(prompts, params))
    wanted = subjects[1].generate(prompts, params)
    assert [c.token_ids for c in completions] == [c.token_ids for c in wanted]
    assert {event_request for event_request, _ in texts} == set(range(18))
    for index, completion in enumerate(completions):
        assert sum(len(b.lineage) > 0 for b in completion.branches) == sum(k[0] == index and k[1] != () for k in texts)


def test_leaving_a_stream_frees_everything():
    subject = Engine(tiny_model(), TOKENIZER, sampler=WritesBlocks(len(TOKENIZER)))
    for number, _ in enumerate(subject.stream([[1], [2]], SamplingParams(n=2))):
        if number == 40:
            break
    assert not subject.cache.pages.rows and not subject.scheduler.has_work
    assert subject.model.config._attn_implementation == "sdpa"


def test_characters_that_are_split_over_tokens_come_whole():
    script = {(): TOKENIZER("né à \U0001f600 fin")["input_ids"]}
    subject = Engine(tiny_model(), TOKENIZER, sampler=ScriptedSampler(script, len(TOKENIZER), EOS))
    pieces = [event.text for event in subject.stream([[1]]) if event.kind == "text"]
    assert "".join(pieces).removesuffix("<|im_end|>") == "né à \U0001f600 fin"
    assert not any("\ufffd" in piece for piece in pieces) and len(pieces) > 8


def test_the_trace_as_data_says_where_each_token_is_and_what_it_sees():
    subject = Engine(tiny_model(dtype=torch.float64), TOKENIZER, sampler=WritesBlocks(len(TOKENIZER)))
    (completion,) = subject.generate([[1, 2, 3]], SamplingParams(max_tokens=90, num_logprobs=2))
    record = json.loads(json.dumps(completion.as_dict(tokens=True)))
    mask_TT = completion.layout.dense_mask()
    for index in range(completion.num_generated):
        seen = {k for a, b in completion.visible_to(index) for k in range(a, b)}
        assert seen == set(mask_TT[3 + index].nonzero().flatten().tolist())
    nodes = {k: node for node in record["nodes"] for k in range(node["start"], node["end"])}
    assert len(nodes) == 3 + completion.num_generated
    for index, position in enumerate(record["position_ids"]):
        node = nodes[3 + index]
        assert position == node["position"] + 3 + index - node["start"]
    assert record["branches"][1]["lineage"] == [0, 0] and record["branches"][1]["parent"] == 0
    assert (
        record["passes"] == sorted(record["passes"][k] for k in range(len(record["passes"])))
        or max(record["token_branches"]) > 0
    )
    # A path's tokens come pass by pass, and the conclusion after the last of them.
    for number in range(len(record["branches"])):
        own = [p for p, at in zip(record["passes"], record["token_branches"], strict=True) if at == number]
        assert own == sorted(own)
    assert len(record["top_logprobs"][5]) in (0, 2)
