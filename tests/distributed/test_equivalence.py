"""Two ranks under every ZeRO stage train what one process trains with plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mvtrain.train.engine_setup import read_checkpoint
from mvtrain.train.model import IGNORED
from mvtrain.train.plan import make_plan
from mvtrain.train.schedule import learning_rate
from tests.distributed.runs import parse, run_pair, write_recipe

pytest.importorskip("deepspeed")

RUNS = [(3, True), (3, False), (2, True), (1, False), (0, True)]
RECOMPUTED = {
    (3, False): {"gradient_checkpointing": True},
    (3, True): {"gradient_checkpointing": True, "save_attention": True},
}
"""The runs with gradient checkpointing."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(stage, tied) -> recipe and what two ranks computed."""
    folder = tmp_path_factory.mktemp("equivalence")
    recipes = {
        (stage, tied): write_recipe(folder, tied=tied, count=17, zero_stage=stage, **RECOMPUTED.get((stage, tied), {}))
        for stage, tied in RUNS
    }
    run_pair("tests.distributed.train_all_stages", *map(str, recipes.values()))
    return {key: (recipe, torch.load(recipe.with_suffix(".pt"))) for key, recipe in recipes.items()}


@pytest.fixture(scope="module")
def plain(runs):
    """tied -> losses, norms and weights of one process."""
    return {tied: train_plainly(parse(runs[3, tied][0])) for tied in (True, False)}


def train_plainly(config):
    """Stock loss on full logits, one backward for the whole step, torch's AdamW and clipping."""
    plan = make_plan(config, world_size=2)
    lm = read_checkpoint(config.model, torch.float32)
    decayed = [p for p in lm.parameters() if p.dim() > 1]
    kept = [p for p in lm.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas)
    losses, norms = [], []
    for number, step in enumerate(plan.steps):
        total, num_targets = 0.0, 0
        for batch in (batch for rank in range(2) for batch in plan.batches(step, rank)):
            logits = lm(batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False).logits
            total += F.cross_entropy(logits[0, :-1], batch.labels[0, 1:], ignore_index=IGNORED, reduction="sum")
            num_targets += (batch.labels[0, 1:] != IGNORED).sum()
        loss = total / num_targets
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(lm.parameters(), config.max_grad_norm).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                number, len(plan.steps), config.learning_rate, config.warmup_ratio, config.min_lr_ratio
            )
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, lm.state_dict()


def test_the_case_is_hard_enough(runs):
    """Otherwise the comparison below would hold for a wrong scale too."""
    config = parse(runs[3, True][0])
    plan = make_plan(config, world_size=2)
    targets = [[[b.num_targets for b in plan.batches(step, rank)] for rank in range(2)] for step in plan.steps]
    assert len(plan.steps) >= 4
    assert all(len(rank) == 2 for step in targets for rank in step), "accumulation of 2"
    assert any(sum(step[0]) != sum(step[1]) for step in targets), "unequal targets per rank"
    assert any(0 in rank for step in targets for rank in step), "a rank without a pack"


@pytest.mark.parametrize(("stage", "tied"), RUNS)
def test_two_ranks_equal_one_plain_process(runs, plain, stage, tied):
    _, found = runs[stage, tied]
    losses, norms, state = plain[tied]
    assert [record["loss"] for record in found["records"]] == pytest.approx(losses, rel=2e-5)
    if stage > 0:
        assert [record["grad_norm"] for record in found["records"]] == pytest.approx(norms, rel=2e-4)
        assert max(norms) > 0.5, "clipping was active"
    assert found["state"].keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(
            found["state"][name], value, rtol=0, atol=3e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_training_moved_the_weights_far_beyond_the_tolerance(runs, plain):
    start = read_checkpoint(parse(runs[3, True][0]).model, torch.float32).state_dict()
    for name, value in plain[True][2].items():
        assert (value - start[name]).abs().max() > 1e-3, name
