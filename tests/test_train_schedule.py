"""The learning rate: values worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mvtrain.train.schedule import learning_rate


def test_warm_up_then_cosine_to_the_minimum():
    rates = [learning_rate(step, 11, peak=1.0, warmup_ratio=0.25, min_ratio=0.1) for step in range(11)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert 0.1 < rates[-1] < 0.15
    # Eight steps of nine: a third of the way is cos(60 degrees) = 1/2, so (1 + 1/2) / 2 of what is above the minimum.
    assert rates[5] == pytest.approx(0.1 + 0.9 * 0.75)
    assert all(a > b for a, b in pairwise(rates[2:]))


def test_schedule_at_its_edges():
    assert learning_rate(0, 1, 1.0, 0.05) == 1.0
    assert learning_rate(0, 4, 1.0, 0.0) < 1.0
    assert [learning_rate(step, 4, 1.0, 1.0) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
