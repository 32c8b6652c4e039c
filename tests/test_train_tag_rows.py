"""A learning rate of their own for the tags' rows: corrections that add up to what another rate would do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mvtrain.attention import register
from mvtrain.data.collate import IGNORED, collate
from mvtrain.train.model import CORRECTS_TAGS, SumOfTokenLosses, parameter_groups
from mvtrain.train.tag_rows import correction_rate, merge_tag_rows
from tests.test_train_model import EXAMPLES
from tests.tiny import tiny_model, tiny_tags

TAGS = tiny_tags().as_tuple()


def module_of(tied: bool, corrected: bool = True) -> SumOfTokenLosses:
    lm = tiny_model(tied=tied)
    lm.set_attn_implementation(register())
    return SumOfTokenLosses(lm, chunk=50, tag_ids=TAGS if corrected else None)


def run(module: SumOfTokenLosses) -> torch.Tensor:
    batch = collate(EXAMPLES, tiny_tags())
    return module(batch.input_ids, batch.position_ids, batch.targets, batch.layout, batch.target_kinds)[0]


def plain_state(module: SumOfTokenLosses, tied: bool) -> dict[str, torch.Tensor]:
    return merge_tag_rows({k: v.clone() for k, v in module.lm.state_dict().items()}, TAGS, tied)


@pytest.mark.parametrize("tied", [True, False])
def test_corrections_are_the_rows_of_a_plain_model(tied):
    """With any corrections: same loss, and logits, as the plain model with the merged rows."""
    module, plain = module_of(tied), module_of(tied, corrected=False)
    for parameter in {id(p): p for n, p in module.named_parameters() if n.endswith(".correction")}.values():
        torch.nn.init.normal_(parameter, std=0.3)
    without = run(plain).detach()
    state = plain_state(module, tied)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    plain.lm.load_state_dict(state)
    torch.testing.assert_close(run(module), run(plain), rtol=1e-5, atol=0)
    assert (run(module) - without).abs() > 1, "the corrections matter"
    ids = torch.tensor([[1, 2, *TAGS, 3]])
    torch.testing.assert_close(module.lm(ids).logits, plain.lm(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_corrections_are_those_of_the_rows(tied):
    """Against autograd through full logits of the same module."""
    chunked, stock = module_of(tied), module_of(tied)
    run(chunked).backward()
    batch = collate(EXAMPLES, tiny_tags())
    logits = stock.lm(batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False).logits
    F.cross_entropy(logits[0], batch.targets[0], ignore_index=IGNORED, reduction="sum").backward()
    others = dict(stock.named_parameters())
    checked = 0
    for name, parameter in chunked.named_parameters():
        torch.testing.assert_close(parameter.grad, others[name].grad, rtol=1e-4, atol=1e-4, msg=name)
        checked += name.endswith(".correction")
    assert checked == (1 if tied else 2)


def test_two_rates_move_the_rows_as_one_rate_would():
    """AdamW's step does not depend on the gradient's size: corrections and rows move alike, each by its rate."""
    module, fast = module_of(tied=True), module_of(tied=True, corrected=False)
    start = fast.lm.model.embed_tokens.weight.detach().clone()
    rate, tag_rate = 1e-3, 5e-3
    groups = parameter_groups(module, 0.0)
    for group in groups:
        group["lr"] = correction_rate(rate, rate, tag_rate) if group.get(CORRECTS_TAGS) else rate
    optimizers = [torch.optim.AdamW(groups), torch.optim.AdamW(parameter_groups(fast, 0.0), lr=tag_rate)]
    for model, optimizer in zip((module, fast), optimizers, strict=True):
        run(model).backward()
        optimizer.step()
    rows = plain_state(module, tied=True)["model.embed_tokens.weight"]
    expected = fast.lm.model.embed_tokens.weight.detach()
    tags = list(TAGS)
    torch.testing.assert_close(rows[tags], expected[tags], rtol=0, atol=1e-6)
    moved = (rows - start).abs().amax(1)
    others = [i for i in range(len(rows)) if i not in tags]
    assert moved[tags].max() > 4e-3 and moved[others].max() < 1.1e-3
