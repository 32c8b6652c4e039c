"""The learning rate and the memory estimate: values worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest

from mvtrain.train.config import DataConfig, TrainConfig
from mvtrain.train.memory import ModelSize, estimate
from mvtrain.train.schedule import learning_rate
from tests.tiny import tiny_model


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


SIZE = ModelSize(
    parameters=1000, head=100, layer=50, num_layers=2, hidden=10, kv_width=5, intermediate=20, vocab=10
)  # fmt: skip


def config(**changes) -> TrainConfig:
    values = {"context": 8, "loss_chunk": 4, "model": "m", "output_dir": "o", **changes}
    return TrainConfig.model_construct(data=DataConfig.model_construct(), **values)


def test_zero_stages_divide_what_they_say():
    by_stage = [estimate(SIZE, config(precision="bf16"), stage, world_size=4) for stage in range(4)]
    assert [e["optimizer"] for e in by_stage] == [12_000, 3_000, 3_000, 3_000]
    assert [e["parameters"] for e in by_stage] == [2_000, 2_000, 2_000, 500 + 2 * 150]
    assert [e["gradients"] for e in by_stage] == [2_200, 2_200, 700, 700]
    assert estimate(SIZE, config(), 3, 4, offload=True)["optimizer"] == 0
    summed = estimate(SIZE, config(gradient_accumulation_steps=2), 0, 4)
    assert summed["gradients"] == 6_000 + 200


def test_activations_and_logits():
    plain = estimate(SIZE, config(precision="bf16"), 0, 1)
    # Per token and layer: norms 2 * 10 * 6, attention 2 * (30 + 20), MLP 2 * 80.
    assert plain["activations"] == 8 * 2 * (120 + 100 + 160)
    assert plain["logits"] == 4 * 10 * 10 + 400
    recomputed = estimate(SIZE, config(precision="bf16", gradient_checkpointing=True), 0, 1)
    assert recomputed["activations"] == 8 * (2 * 20 + 380)


def test_model_size_comes_from_the_configuration(tmp_path):
    lm = tiny_model(tied=True)
    lm.config.save_pretrained(tmp_path)
    size = ModelSize.of_checkpoint(str(tmp_path))
    assert size.parameters == sum(p.numel() for p in lm.parameters())
    assert size.head == lm.lm_head.weight.numel()
    assert (size.hidden, size.kv_width, size.num_layers) == (32, 16, 2)
