"""The loss that is trained on: against plain cross entropy, and packed against unpacked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mvtrain.attention import register
from mvtrain.data.collate import collate
from mvtrain.data.examples import Example
from mvtrain.train.model import IGNORED, LossHead, SumOfTokenLosses, parameter_groups
from tests.tiny import tiny_model, tiny_tags, tiny_tokenizer

TRACE = (
    "<Think>\nhm\n<Parallel>\n<Goal>\n"
    "<Outline>\n1: a\n</Outline>\n<Outline>\n2: b\n</Outline>\n</Goal>\n<Path>\n1: {}\n"
    "</Path>\n<Path>\n2: {}\n</Path>\n<Conclusion>\n{}\n</Conclusion>\n</Parallel>\n</Think>\n\n{}"
)


def example(prompt: str, *fillers: str) -> Example:
    tokenizer = tiny_tokenizer()
    prompt_ids = tokenizer(prompt)["input_ids"]
    ids = prompt_ids + tokenizer(TRACE.format(*fillers))["input_ids"]
    return Example(np.array(ids, dtype=np.int32), len(prompt_ids), "parallel", "test")


EXAMPLES = [
    example("one and one?", "first path", "second", "both", "2"),
    example("x", "a", "a much longer second path", "c", "3"),
    example("why is that so?", "u", "v", "w", "0"),
]


def wrapped(tied: bool, chunk: int = 1024) -> SumOfTokenLosses:
    lm = tiny_model(tied=tied, dtype=torch.float64)
    lm.set_attn_implementation(register())
    return SumOfTokenLosses(lm, chunk)


def loss_of(module: SumOfTokenLosses, examples: list[Example], scale: float = 1.0) -> torch.Tensor:
    batch = collate(examples, tiny_tags())
    loss, _ = module(batch.input_ids, batch.position_ids, batch.targets, batch.layout, batch.target_kinds)
    (loss * scale).backward()
    return loss.detach()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 64, 100_000])
def test_chunked_loss_and_gradients_equal_plain_cross_entropy(tied, chunk):
    chunked, plain = wrapped(tied, chunk), wrapped(tied)
    assert (chunked.lm.lm_head.weight is chunked.lm.model.embed_tokens.weight) == tied
    loss = loss_of(chunked, EXAMPLES, scale=0.25)
    batch = collate(EXAMPLES, tiny_tags())
    logits = plain.lm(batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False).logits
    expected = F.cross_entropy(logits[0, :-1], batch.labels[0, 1:], ignore_index=IGNORED, reduction="sum")
    (expected * 0.25).backward()
    # The loss itself is computed in fp32 by design; the gradients come from it.
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected.detach().float(), rtol=1e-6, atol=0)
    assert_same_gradients(chunked, plain, rtol=2e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_packed_equals_the_sum_over_unpacked(tied):
    packed, single = wrapped(tied, 50), wrapped(tied, 50)
    together = loss_of(packed, EXAMPLES)
    apart = sum(loss_of(single, [item]) for item in EXAMPLES)
    torch.testing.assert_close(together, apart, rtol=1e-6, atol=0)
    assert_same_gradients(packed, single, rtol=2e-5)


def test_a_leak_between_documents_would_show():
    """Negative control: the same tokens as one document give another loss."""
    packed, joined = wrapped(True), wrapped(True)
    ids = np.concatenate([item.input_ids for item in EXAMPLES])
    together = loss_of(packed, EXAMPLES)
    one = loss_of(joined, [Example(ids, EXAMPLES[0].prompt_length, "parallel", "test")])
    assert abs(together - one) > 1


def test_accumulation_sums_gradients():
    twice, once = wrapped(True, 9), wrapped(True, 9)
    loss_of(twice, EXAMPLES[:1])
    loss_of(twice, EXAMPLES[1:])
    loss_of(once, EXAMPLES)
    assert_same_gradients(twice, once, rtol=2e-5)


def test_an_empty_pack_has_no_loss_and_zero_gradients():
    module = wrapped(False)
    assert loss_of(module, []) == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_no_gradient_is_computed_without_grad_mode():
    head = LossHead(torch.nn.Parameter(torch.randn(11, 4)), 3)
    hidden, targets = torch.randn(10, 4), torch.arange(10)
    targets[3] = IGNORED
    with torch.no_grad():
        loss, _ = head(hidden, targets, torch.zeros_like(targets))
        expected = F.cross_entropy(F.linear(hidden, head.weight), targets, ignore_index=IGNORED, reduction="sum")
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected)


def test_bf16_gradients_of_the_head_are_summed_in_fp32():
    torch.manual_seed(0)
    weight = torch.randn(50, 16).bfloat16()
    hidden, targets = torch.randn(4096, 16).bfloat16(), torch.randint(0, 50, (4096,))
    errors = {}
    for chunk in (4, 4096):
        head = LossHead(torch.nn.Parameter(weight.clone()), chunk)
        head(hidden, targets, torch.zeros_like(targets))[0].backward()
        exact = torch.nn.Parameter(weight.double())
        F.cross_entropy(F.linear(hidden.double(), exact), targets, reduction="sum").backward()
        errors[chunk] = ((head.weight.grad.double() - exact.grad).norm() / exact.grad.norm()).item()
    assert errors[4] < 2 * errors[4096] + 1e-3, errors


def test_parameter_groups_spare_norms_and_biases():
    module = wrapped(True)
    decayed, kept = parameter_groups(module, 0.1)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all("norm" in names[id(p)] or "bias" in names[id(p)] for p in kept["params"])
    assert "lm.model.embed_tokens.weight" in {names[id(p)] for p in decayed["params"]}
    assert len(decayed["params"]) + len(kept["params"]) == len(names)


def test_models_with_another_head_are_refused():
    lm = tiny_model()
    lm.lm_head = torch.nn.Linear(32, 10, bias=True)
    with pytest.raises(ValueError, match="without bias"):
        SumOfTokenLosses(lm)
    capped = tiny_model()
    capped.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="changes its logits"):
        SumOfTokenLosses(capped)


def assert_same_gradients(a: torch.nn.Module, b: torch.nn.Module, rtol: float) -> None:
    others = dict(b.named_parameters())
    for name, parameter in a.named_parameters():
        other = others[name].grad
        miss = (parameter.grad - other).norm() / other.norm()
        assert miss < rtol, f"{name}: {miss:.2e}"
