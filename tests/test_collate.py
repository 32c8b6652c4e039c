"""Batches: targets are the assistants' turns and no more, documents stay apart, an empty pack is a batch as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mvtrain.data.collate import IGNORED, collate
from mvtrain.data.examples import Example, build_examples
from mvtrain.data.sources import Record
from mvtrain.layout import Layout
from tests.test_examples import TRACE
from tests.tiny import tiny_tags, tiny_tokenizer


@pytest.fixture(scope="module")
def examples():
    records = [
        Record("What?", TRACE, "3", "parallel", "rows.jsonl row 1"),
        Record("Why?", "<Think>\nHm.\n</Think>", "4", "sequential", "rows.jsonl row 2"),
        Record("How?", TRACE.replace("one", "a longer one"), None, "parallel", "rows.jsonl row 3"),
    ]
    return build_examples(records, tiny_tokenizer())[0]


def shifted_targets(batch):
    """(index of the predicting token, target id) as a shifted loss reads them."""
    labels = batch.labels[0, 1:]
    return [(t, labels[t].item()) for t in (labels != IGNORED).nonzero().flatten().tolist()]


def test_targets_decode_to_the_turns_of_every_document(examples):
    tokenizer = tiny_tokenizer()
    batch = collate(examples, tiny_tags())
    text = tokenizer.decode([target for _, target in shifted_targets(batch)], skip_special_tokens=False)
    turns = (TRACE + "\n\nAnswer: 3", "<Think>\nHm.\n</Think>\n\nAnswer: 4", TRACE.replace("one", "a longer one"))
    assert text == "".join(f"{turn}<|im_end|>" for turn in turns)
    assert batch.num_targets == len(shifted_targets(batch)) == sum(example.num_targets for example in examples)
    assert batch.example_ids == ("rows.jsonl row 1", "rows.jsonl row 2", "rows.jsonl row 3")


@pytest.mark.parametrize("scheme", ["isolated", "original"])
def test_documents_are_those_of_the_examples(examples, scheme):
    batch = collate(examples, tiny_tags(), scheme)
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, batch.num_tokens)
    assert batch.input_ids.dtype == batch.labels.dtype == batch.position_ids.dtype == torch.long
    mask_TT = batch.layout.dense_mask()
    start = 0
    for example in examples:
        alone = Layout.from_ids(example.input_ids.astype(np.int64), tiny_tags(), scheme)
        end = start + example.num_tokens
        assert batch.input_ids[0, start:end].tolist() == example.input_ids.tolist()
        assert torch.equal(batch.position_ids[0, start:end], alone.position_ids)
        assert torch.equal(mask_TT[start:end, start:end], alone.dense_mask())
        assert not mask_TT[start:end, :start].any() and not mask_TT[start:end, end:].any()
        start = end
    assert start == batch.num_tokens


def test_no_target_crosses_documents_even_without_a_prompt():
    rows = [
        Example(np.array(ids, dtype=np.int32), 0, "sequential", f"row {i}") for i, ids in enumerate(([5, 6], [7, 8, 9]))
    ]
    batch = collate(rows, tiny_tags())
    assert batch.labels.tolist() == [[IGNORED, 6, IGNORED, 8, 9]]
    assert shifted_targets(batch) == [(0, 6), (2, 8), (3, 9)]
    assert batch.num_targets == 3 == sum(example.num_targets for example in rows)
    # The control: with the first label of the second document in place, token 1 would be asked for it.
    broken = torch.tensor([IGNORED, 6, 7, 8, 9])[1:]
    assert (broken != IGNORED).sum() == 4


@pytest.mark.parametrize("pad_to", [None, 1, 300])
def test_an_empty_pack_is_a_batch_without_targets(pad_to):
    batch = collate([], tiny_tags(), pad_to=pad_to)
    assert batch.num_tokens == (pad_to or 1) == batch.layout.num_tokens
    assert batch.num_targets == 0 and (batch.labels == IGNORED).all() and batch.example_ids == ()
    assert not set(batch.input_ids[0].tolist()) & set(tiny_tags().as_tuple())


def test_padding_adds_no_target_and_is_seen_by_no_example(examples):
    plain = collate(examples, tiny_tags())
    num_tokens = plain.num_tokens
    batch = collate(examples, tiny_tags(), pad_to=num_tokens + 200)
    assert batch.num_tokens == batch.layout.num_tokens == num_tokens + 200
    assert torch.equal(batch.input_ids[:, :num_tokens], plain.input_ids)
    assert torch.equal(batch.labels[:, :num_tokens], plain.labels)
    assert (batch.labels[:, num_tokens:] == IGNORED).all() and batch.num_targets == plain.num_targets
    mask_TT = batch.layout.dense_mask()
    assert not mask_TT[:num_tokens, num_tokens:].any() and not mask_TT[num_tokens:, :num_tokens].any()
    assert torch.equal(collate(examples, tiny_tags(), pad_to=num_tokens).input_ids, plain.input_ids)
    with pytest.raises(ValueError, match=f"the pack has {num_tokens} tokens, more than pad_to={num_tokens - 1}"):
        collate(examples, tiny_tags(), pad_to=num_tokens - 1)


def test_to_moves_tensors_and_keeps_the_rest(examples):
    batch = collate(examples, tiny_tags())
    moved = batch.to("meta", non_blocking=True)
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.position_ids.device.type} == {"meta"}
    assert moved.layout is batch.layout and moved.num_targets == batch.num_targets
    assert moved.example_ids == batch.example_ids and batch.input_ids.device.type == "cpu"
