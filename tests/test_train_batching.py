"""How packs are divided among ranks, worked out by hand."""

from __future__ import annotations

import pytest

from mvtrain.train.batching import Batching
from mvtrain.train.config import ConfigError, DataConfig, TrainConfig


def config(**changes) -> TrainConfig:
    return TrainConfig.model_construct(data=DataConfig.model_construct(), model="m", output_dir="o", **changes)


@pytest.mark.parametrize(
    ("changes", "ranks", "packs", "accumulation"),
    [
        ({"gradient_accumulation_steps": 3, "micro_batch_size": 2}, 4, 24, 3),
        ({"packs_per_step": 8}, 2, 8, 4),
        ({"packs_per_step": 8}, 3, 8, 3),  # one of nine is empty
        ({"packs_per_step": 8}, 16, 8, 1),  # half of the ranks have none
        ({"packs_per_step": 8, "sequence_parallel_size": 2}, 4, 8, 4),
        ({"sequence_parallel_size": 4}, 8, 2, 1),
    ],
)
def test_batching(changes, ranks, packs, accumulation):
    batching = Batching.of(config(**changes), ranks)
    assert (batching.packs_per_step, batching.accumulation_steps) == (packs, accumulation)


def test_a_run_that_goes_on_keeps_its_packs():
    batching = Batching.of(config(gradient_accumulation_steps=4), 1, packs_per_step=8)
    assert (batching.packs_per_step, batching.accumulation_steps) == (8, 8)


def test_ranks_of_a_group_follow_each_other():
    batching = Batching.of(config(sequence_parallel_size=2), 6)
    assert [batching.group_of(rank) for rank in range(6)] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="7 ranks cannot be divided into groups of 2"):
        Batching.of(config(sequence_parallel_size=2), 7)
