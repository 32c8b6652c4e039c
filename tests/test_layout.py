"""Positions and visibility against a brute-force rule, and against values worked out by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvtrain.layout import SCHEMES, TAGS, Layout, LayoutError, TagIds
from tests.brute_force import random_document
from tests.tiny import tiny_tags, tiny_tokenizer

TAG = tiny_tags()
NEWLINE = 10


def example_ids() -> list[int]:
    """The block of docs/attention-and-positions.md: </Goal> stands at position 10, the paths hold 3 and 5 tokens."""
    path = [[NEWLINE, TAG.path, NEWLINE, *[65] * n, NEWLINE, TAG.end_path] for n in (3, 5)]
    head = [0] * 8 + [TAG.parallel, TAG.goal, TAG.end_goal]
    return [*head, *path[0], *path[1], NEWLINE, TAG.conclusion, NEWLINE, TAG.end_conclusion, TAG.end_parallel]


def test_positions_by_hand_isolated():
    layout = Layout.from_ids(example_ids(), TAG)
    path_1, path_2, rest = (
        [11, 12, 13, 14, 15, 16, 17, 18],
        [11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
        [21, 22, 23, 24, 25],
    )
    assert layout.position_ids.tolist() == [*range(11), *path_1, *path_2, *rest]


def test_positions_by_hand_original():
    layout = Layout.from_ids(example_ids(), TAG, "original")
    path_1, path_2 = [11, 12, 13, 14, 15, 16, 17], [11, 12, 13, 14, 15, 16, 17, 18, 19]
    assert layout.position_ids.tolist() == [*range(11), 11, *path_1, 18, *path_2, 20, 20, 21, 22, 23]


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=1500, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_layout_equals_brute_force(scheme, seed):
    tokens = random_document(seed, TAG, scheme)
    layout = Layout.from_ids(tokens.ids, TAG, scheme)
    assert layout.position_ids.tolist() == tokens.positions
    mask_TT = tokens.mask()
    assert torch.equal(layout.dense_mask(), mask_TT)
    assert layout.num_visible_pairs == mask_TT.sum().item()


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_two_schemes_differ_wherever_a_block_has_separators(seed):
    """Negative control: the brute force of one scheme must not match the layout of the other."""
    tokens = random_document(seed, TAG, "original", max_blocks=2)
    layout = Layout.from_ids(tokens.ids, TAG, "isolated")
    has_separator = any(
        id < 200 and before in (TAG.end_path, TAG.end_goal)
        for before, id in zip(tokens.ids, tokens.ids[1:], strict=False)
    )
    same = layout.position_ids.tolist() == tokens.positions and torch.equal(layout.dense_mask(), tokens.mask())
    assert not (has_separator and same)


@settings(max_examples=100, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=5), scheme=st.sampled_from(SCHEMES))
def test_packed_documents_keep_their_layout_and_do_not_see_each_other(seeds, scheme):
    documents = [random_document(seed, TAG, scheme) for seed in seeds]
    packed = Layout.pack([Layout.from_ids(d.ids, TAG, scheme) for d in documents])
    assert torch.equal(packed.dense_mask(), torch.block_diag(*(d.mask() for d in documents)).bool())
    assert packed.position_ids.tolist() == [p for d in documents for p in d.positions]
    assert [end - start for start, end in packed.documents] == [len(d.ids) for d in documents]


def test_no_block_is_plain_causal():
    layout = Layout.from_ids(list(range(7)), TAG)
    assert layout.position_ids.tolist() == list(range(7))
    assert torch.equal(layout.dense_mask(), torch.ones(7, 7).tril().bool())
    assert len(layout.nodes) == 1


def test_causal_reads_no_tag():
    ids = example_ids()
    layout = Layout.from_ids(ids, TAG, "causal")
    again = Layout.decode(layout.encoded)
    assert (again.nodes, again.scheme) == (layout.nodes, "causal")
    assert layout.position_ids.tolist() == list(range(len(ids)))
    assert layout.dense_mask().equal(torch.ones(len(ids), len(ids)).tril().bool())
    unclosed = ids[:-1]
    assert Layout.from_ids(unclosed, TAG, "causal").num_tokens == len(unclosed)


def test_start_position_shifts_every_position():
    ids = example_ids()
    shifted = Layout.from_ids(ids, TAG, start_position=5).position_ids
    assert torch.equal(shifted, Layout.from_ids(ids, TAG).position_ids + 5)


def test_a_long_trace_takes_linear_memory():
    path = [NEWLINE, TAG.path, *[65] * 150, TAG.end_path]
    block = [
        TAG.parallel,
        TAG.goal,
        TAG.end_goal,
        *path * 7,
        NEWLINE,
        TAG.conclusion,
        TAG.end_conclusion,
        TAG.end_parallel,
    ]
    ids = block * 30
    for scheme in SCHEMES:
        layout = Layout.from_ids(ids, TAG, scheme)
        assert layout.num_tokens == len(ids) > 32_000
        assert len(layout.nodes) <= 30 * (2 * 7 + 2)
        assert sum(len(node.sees) for node in layout.nodes) <= 30 * 8 * 8


P, Q = TAG, TAG
MALFORMED = {
    "path outside of a block": ([1, P.path], 1, "<Path> found outside of a <Parallel> block"),
    "path before goal": ([P.parallel, P.path], 1, "<Path> found, expected <Goal>"),
    "no path": ([P.parallel, P.goal, P.end_goal, P.conclusion], 3, "<Conclusion> found, expected <Path>"),
    "path left open": (
        [P.parallel, P.goal, P.end_goal, P.path, 1, P.conclusion],
        5,
        "<Conclusion> found, expected </Path> or <Parallel> (block opened at token 0)",
    ),
    "block in a goal": ([P.parallel, P.goal, P.parallel], 2, "<Parallel> found, expected </Goal>"),
    "end of text": ([1, P.parallel, P.goal], 3, "the text ends, expected </Goal> (block opened at token 1)"),
    "closed twice": (
        [P.parallel, P.goal, P.end_goal, P.path, P.end_path, P.end_path],
        5,
        "</Path> found, expected <Path> or <Conclusion>",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tokens_are_refused_where_they_stand(name):
    ids, index, message = MALFORMED[name]
    with pytest.raises(LayoutError) as caught:
        Layout.from_ids(ids, TAG)
    assert caught.value.index == index
    assert f"token {index}: {message}" in str(caught.value)


def test_tag_ids_from_tokenizer_and_from_vocab():
    tokenizer = tiny_tokenizer()

    class OnlyVocab:
        def get_vocab(self):
            return tokenizer.get_vocab()

    assert TagIds.from_tokenizer(tokenizer) == TagIds.from_tokenizer(OnlyVocab())
    assert list(TagIds.from_tokenizer(tokenizer).as_tuple()) == tokenizer.convert_tokens_to_ids(list(TAGS))


def test_a_tokenizer_without_tags_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"no token for <Think>.*mvtrain convert"):
        TagIds.from_tokenizer(tiny_tokenizer(with_tags=False))


def test_unknown_scheme_and_mixed_packs_are_refused():
    with pytest.raises(ValueError, match="choose one of isolated, original"):
        Layout.from_ids([1], TAG, "orignal")
    with pytest.raises(ValueError, match="same scheme"):
        Layout.pack([Layout.from_ids([1], TAG), Layout.from_ids([1], TAG, "original")])
