"""`mvtrain::attention` as an operator: numerics of whole plans, torch.compile, activation checkpointing."""

import gc

import pytest
import torch
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from mvtrain.attention import execute, kernels, kernels_cpu, varlen
from mvtrain.attention.checkpointing import contexts_that_save_attention
from mvtrain.attention.plan import Geometry
from mvtrain.attention.reference import attend as reference
from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import SCHEMES, Layout
from tests.layouts import TAG, random_layout

HEADS = [(4, 4), (6, 2), (3, 1), (8, 2)]
ALL = 99  # more levels than any layout here has


def tensors(layout: Layout, heads: tuple[int, int], dtype=torch.float64, width: int = 16) -> list[torch.Tensor]:
    """q, k, v that ask for gradients, and the gradient of the output."""
    random = torch.Generator().manual_seed(layout.num_tokens)
    shapes = [(layout.num_tokens, h, width) for h in (heads[0], heads[1], heads[1], heads[0])]
    q, k, v, dout = (torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes)
    return [*(x.requires_grad_() for x in (q, k, v)), dout]


def output_and_gradients(attend, q, k, v, dout, *args) -> list[torch.Tensor]:
    out = attend(q, k, v, *args)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_plans_equal_the_dense_mask_in_fp64(first_seed, scheme):
    """240 random packs, forward and all gradients; gather form, merge form, and one level or the automatic choice."""
    for seed in range(first_seed, first_seed + 20):
        layout, heads = random_layout(seed, scheme), HEADS[seed % 4]
        inputs = tensors(layout, heads)
        expected = output_and_gradients(reference, *inputs, layout, 0.3)
        for levels in (0, ALL, (1, varlen.AUTOMATIC)[seed % 2]):
            found = output_and_gradients(varlen.attend, *inputs, layout, 0.3, "torch_cpu", levels)
            for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
                miss = (a - b).abs().max().item()
                assert miss < 1e-10, f"seed {seed}, {levels} levels: {name} misses by {miss:.2e}"


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sharing_rows_among_threads_changes_nothing(threads):
    """Long rectangles are cut into chunks for the backward kernel's threads; lengths that no number divides."""
    ids = [1] * 301 + [TAG.parallel, TAG.goal, TAG.end_goal]
    ids += ([TAG.path] + [1] * 401 + [TAG.end_path]) * 3
    ids += [TAG.conclusion, TAG.end_conclusion, TAG.end_parallel] + [1] * 103
    layout = Layout.from_ids(ids, TAG)
    inputs = tensors(layout, (3, 1), width=8)
    expected = output_and_gradients(reference, *inputs, layout, 0.3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        chunks = kernels_cpu._num_chunks(1, 3 * 401)
        found = output_and_gradients(varlen.attend, *inputs, layout, 0.3, "torch_cpu", ALL)
    finally:
        torch.set_num_threads(before)
    assert chunks == threads
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-10


def backward_without_joined_statistics(dout, q, k, v, plan, scale) -> list[torch.Tensor]:
    """What is wrong: each call's backward with its own output and log-sum-exp, weighted as autograd would."""
    _, lse = execute.forward(q, k, v, plan, kernels_cpu, scale)
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    for call in plan.calls:
        rows, keys = slice(*call.query_rows), slice(*call.key_rows)
        part, part_lse = kernels_cpu.forward(q[rows], k[keys], v[keys], call, scale)
        weighted = dout[rows] * (part_lse - lse[:, rows]).exp().t()[..., None]
        parts = kernels_cpu.backward(weighted, q[rows], k[keys], v[keys], part, part_lse, call, scale)
        for total, place, gradient in zip(gradients, (rows, keys, keys), parts, strict=True):
            total[place] += gradient
    return gradients


def test_backward_without_joined_statistics_is_wrong():
    """Negative control: dv happens to be right without them, dq and dk are not."""
    layout = random_layout(7)
    *qkv, dout = tensors(layout, (4, 2))
    _, *expected = output_and_gradients(reference, *qkv, dout, layout, 0.3)
    plan = Geometry(layout).plan(ALL)
    q, k, v = (x.detach() for x in qkv)
    dq, dk, dv = backward_without_joined_statistics(dout, q, k, v, plan, 0.3)
    assert (dv - expected[2]).abs().max() < 1e-10, "the control computes the same parts"
    assert (dq - expected[0]).abs().max() > 0.1
    assert (dk - expected[1]).abs().max() > 0.1


def single_call(q, k, v, layout: Layout, scale: float) -> torch.Tensor:
    """The same kernel in one call with a dense mask."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
    mask = torch.zeros(layout.num_tokens, layout.num_tokens, dtype=q.dtype)
    mask.masked_fill_(~layout.dense_mask(), float("-inf"))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    return out[0].transpose(0, 1)


def long_layout() -> Layout:
    """One document of 2,500 tokens; most of what is visible lies in rectangles over `kernels_cpu.LONG` wide."""
    ids = [1] * 700 + [TAG.parallel, TAG.goal, TAG.end_goal]
    ids += ([TAG.path] + [1] * 290 + [TAG.end_path]) * 3
    ids += [TAG.conclusion, TAG.end_conclusion, TAG.end_parallel] + [1] * 880
    return Layout.from_ids(ids, TAG)


@pytest.mark.parametrize("size, levels", [("short", 0), ("short", varlen.AUTOMATIC), ("short", ALL), ("long", ALL)])
def test_bf16_is_no_worse_than_one_call_of_the_same_kernel(size, levels):
    layouts = [long_layout()] if size == "long" else [random_layout(seed, SCHEMES[seed % 2]) for seed in range(16)]
    errors = torch.zeros(2, 4)
    for seed, layout in enumerate(layouts):
        *qkv, dout = tensors(layout, HEADS[3 - seed % 4], torch.bfloat16)
        exact = [x.detach().double().requires_grad_() for x in qkv]
        expected = output_and_gradients(single_call, *exact, dout.double(), layout, 0.25)
        ours = output_and_gradients(varlen.attend, *qkv, dout, layout, 0.25, "torch_cpu", levels)
        single = output_and_gradients(single_call, *qkv, dout, layout, 0.25)
        for row, found in enumerate((ours, single)):
            for part, (a, b) in enumerate(zip(found, expected, strict=True)):
                assert a.dtype == torch.bfloat16
                errors[row, part] += ((a.double() - b).norm() / b.norm()).item() / len(layouts)
    for part, ours, single in zip(("out", "dq", "dk", "dv"), *errors.tolist(), strict=True):
        assert ours <= 1.02 * single, f"{part}: {ours:.2e} against {single:.2e} of one call"


def test_torch_accepts_the_operator():
    """Schema, fake tensors, autograd registration and tracing with dynamic shapes, by PyTorch's own checks."""
    layout = random_layout(2)
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, _ = tensors(layout, (4, 2), dtype)
        opcheck(torch.ops.mvtrain.attention.default, (q, k, v, layout.encoded, 0.25, "torch_cpu", ALL))


def test_torch_compile_takes_it_whole_and_does_not_compile_for_every_batch():
    from torch._dynamo.testing import CompileCounterWithBackend

    def loss(q, k, v, layout):
        return varlen.attend(q, k, v, layout, 0.3).square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for seed in range(8):
        layout = random_layout(seed)
        *qkv, _ = tensors(layout, (4, 2))
        found = torch.autograd.grad(compiled(*qkv, layout), qkv)
        expected = torch.autograd.grad(loss(*qkv, layout), qkv)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), seed
    assert counter.frame_count <= 3, "once for the first batch, then once for any length and once for any layout"


@pytest.mark.parametrize("saves_attention, calls", [(True, 1), (False, 2)])
def test_activation_checkpointing_can_save_attention(saves_attention, calls, monkeypatch):
    layout = random_layout(5)
    *qkv, dout = tensors(layout, (4, 2))
    expected = output_and_gradients(reference, *qkv, dout, layout, 0.3)
    kernels.choose.cache_clear()
    kernels.choose(TensorKind.of(*qkv[:2]))
    counted = []
    forward = execute.forward
    monkeypatch.setattr(execute, "forward", lambda *args: counted.append(1) or forward(*args))
    contexts = {"context_fn": contexts_that_save_attention} if saves_attention else {}

    def run(q, k, v):
        return checkpoint(lambda *x: varlen.attend(*x, layout, 0.3) * 1.0, q, k, v, use_reentrant=False, **contexts)

    found = output_and_gradients(run, *qkv, dout)
    assert len(counted) == calls
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("contexts", [{}, {"context_fn": contexts_that_save_attention}])
def test_the_first_call_of_all_may_come_from_a_checkpointed_layer(contexts):
    """The probe call that chooses a kernel leaves no mark on what the layer saves."""
    layout = random_layout(5)
    *qkv, dout = tensors(layout, (4, 2))
    kernels.choose.cache_clear()
    out = checkpoint(lambda *x: varlen.attend(*x, layout, 0.3) * 1.0, *qkv, use_reentrant=False, **contexts)
    found = torch.autograd.grad(out, qkv, dout)
    _, *expected = output_and_gradients(reference, *qkv, dout, layout, 0.3)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-10


def test_backward_does_not_need_the_layout_object():
    layout = random_layout(3)
    *qkv, dout = tensors(layout, (4, 2))
    expected = output_and_gradients(reference, *qkv, dout, layout, 0.3)
    out = varlen.attend(*qkv, layout, 0.3)
    del layout
    varlen._geometry.cache_clear()
    gc.collect()
    for a, b in zip(torch.autograd.grad(out, qkv, dout), expected[1:], strict=True):
        assert (a - b).abs().max() < 1e-10


def test_all_layers_share_one_plan():
    layout = random_layout(4)
    heads = varlen.cost.Heads(4, 2, 16, 8)
    first = varlen.plan_for(layout.encoded, heads, torch.device("cpu"))
    assert varlen.plan_for(layout.encoded.clone(), heads, torch.device("cpu")) is first
