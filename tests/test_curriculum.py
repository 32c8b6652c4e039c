"""The curriculum: mixtures worked out by hand, the public order, and nothing but the seed in it."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from mvtrain.data.curriculum import EIGHT_PHASES, as_indices, epochs, phases


def _members(kind, indices):
    return {(kind, i) for i in indices}


def test_ten_and_ten_by_hand():
    order = phases(10, 10, seed=42)
    s = [index for _, index in order[0]]
    p = [index for _, index in order[6]]
    assert sorted(s) == sorted(p) == list(range(10))
    assert s != list(range(10))
    wanted = [
        _members("sequential", s),
        _members("sequential", s),
        _members("sequential", s[1:]) | _members("parallel", p[:1]),
        _members("sequential", s[:5]) | _members("parallel", p[:5]),
        _members("sequential", s[5:]) | _members("parallel", p[5:]),
        _members("sequential", s[:1]) | _members("parallel", p[1:]),
        _members("parallel", p),
        _members("parallel", p),
    ]
    assert [set(phase) for phase in order] == wanted
    assert [len(phase) for phase in order] == [10] * 8
    assert len(order) == len(EIGHT_PHASES)


def test_counts_of_the_published_run_and_of_odd_sets():
    counts = [Counter(kind for kind, _ in phase) for phase in phases(1000, 1000)]
    assert [(count["sequential"], count["parallel"]) for count in counts] == [
        (1000, 0), (1000, 0), (900, 100), (500, 500), (500, 500), (100, 900), (0, 1000), (0, 1000),
    ]  # fmt: skip
    counts = [Counter(kind for kind, _ in phase) for phase in phases(25, 13)]
    assert [(count["sequential"], count["parallel"]) for count in counts] == [
        (25, 0), (25, 0), (23, 1), (12, 6), (13, 7), (2, 12), (0, 13), (0, 13),
    ]  # fmt: skip


def test_a_mixed_phase_is_shuffled_and_both_halves_make_the_whole():
    order = phases(100, 100)
    kinds = [kind for kind, _ in order[3]]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)
    assert set(order[3]) | set(order[4]) == set(order[0]) | set(order[6])
    assert not set(order[3]) & set(order[4])


def test_the_order_is_that_of_the_public_code():
    """Its recipe, carried out with the `datasets` package."""
    datasets = pytest.importorskip("datasets")

    def shuffled(kind, count):
        rows = datasets.Dataset.from_dict({"kind": [kind] * count, "index": list(range(count))})
        return rows.shuffle(seed=42)

    def part(rows, start, end):
        return rows.select(range(start, end))

    def mixed(first, second):
        return datasets.concatenate_datasets([first, second]).shuffle(seed=42)

    s, p = shuffled("sequential", 37), shuffled("parallel", 44)
    public = [
        s,
        s,
        mixed(part(p, 0, 4), part(s, 3, 37)),
        mixed(part(p, 0, 22), part(s, 0, 18)),
        mixed(part(p, 22, 44), part(s, 18, 37)),
        mixed(part(p, 4, 44), part(s, 0, 3)),
        p,
        p,
    ]
    assert phases(37, 44) == [list(zip(rows["kind"], rows["index"], strict=True)) for rows in public]


def test_only_the_seed_matters(monkeypatch):
    first = phases(40, 30, seed=7)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "3")
    assert phases(40, 30, seed=7) == first
    assert phases(40, 30, seed=8) != first


def test_as_indices_puts_parallel_examples_after_sequential_ones():
    assert as_indices([[("sequential", 2), ("parallel", 0)], [("parallel", 1)]], 3) == [[2, 3], [4]]
    flat = as_indices(phases(10, 20), 10)
    assert sorted(flat[0]) == list(range(10)) and sorted(flat[7]) == list(range(10, 30))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="0 parallel ones"):
        phases(5, 0)
    with pytest.raises(ValueError, match="0 sequential ones"):
        phases(0, 5)
    with pytest.raises(ValueError, match="no example"):
        epochs(0, 1)


def test_epochs_are_permutations_of_their_own():
    three = list(epochs(50, 3, seed=1))
    assert [sorted(epoch) for epoch in three] == [list(range(50))] * 3
    assert three[0] != three[1] != three[2] != three[0]
    assert list(epochs(50, 3, seed=1)) == three
    assert list(islice(epochs(50, None, seed=1), 5))[:3] == three
    assert next(epochs(50, 1, seed=2)) != three[0]
