"""Batches made ahead are those of the plan, with their attention plans; faults come out where they are asked for."""

from types import SimpleNamespace

import pytest
import torch

from mvtrain.attention import cost, varlen
from mvtrain.train.loading import BatchesAhead, heads_of
from mvtrain.train.plan import make_plan
from tests.distributed.runs import parse, write_recipe
from tests.tiny import FAMILIES, tiny_model

CPU = torch.device("cpu")
HEADS = cost.Heads(4, 2, 8, 4)


@pytest.fixture
def plan(tmp_path):
    return make_plan(parse(write_recipe(tmp_path, tied=True, count=12)), world_size=2)


def test_the_same_batches_in_any_order_of_asking(plan):
    ahead = BatchesAhead(plan, 1, HEADS, CPU)
    assert len(plan.steps) > 2
    for number in (0, 1, 2, 0, len(plan.steps) - 1):
        found, expected = ahead.of_step(number), plan.batches(plan.steps[number], 1)
        assert [b.input_ids.tolist() for b in found] == [b.input_ids.tolist() for b in expected]
    ahead.close()


def test_plans_are_ready_before_the_step_begins(plan, monkeypatch):
    ahead = BatchesAhead(plan, 0, HEADS, CPU)
    batches = ahead.of_step(0)
    monkeypatch.setattr(varlen, "Geometry", None)  # building one now would fail
    for batch in batches:
        assert varlen.plan_for(batch.layout.encoded, HEADS, CPU).calls
    ahead.close()


def test_a_fault_is_raised_by_the_step_it_belongs_to(plan, monkeypatch):
    ahead = BatchesAhead(plan, 0, HEADS, CPU)
    make = plan.batches

    def faulty(step, rank):
        if step is plan.steps[1]:
            raise ValueError("row 7 is gone")
        return make(step, rank)

    ahead.plan = SimpleNamespace(steps=plan.steps, batches=faulty, batching=plan.batching)
    ahead.of_step(0)
    with pytest.raises(ValueError, match="row 7 is gone"):
        ahead.of_step(1)
    ahead.of_step(2)
    ahead.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_of_a_model(family):
    lm = tiny_model(family)
    layer = lm.model.layers[0].self_attn
    heads = heads_of(lm.config, torch.bfloat16)
    assert heads.num_heads * heads.width == layer.q_proj.out_features
    assert heads.num_key_heads * heads.width == layer.k_proj.out_features
    assert heads.num_bytes == 2
