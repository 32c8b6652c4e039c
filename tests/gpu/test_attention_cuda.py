"""Every kernel that can run on this GPU against the dense reference, with gradients. Skipped where there is no GPU.

`make test-gpu` runs this folder and prints which kernels were found and which were not, with the reason.
"""

import pytest
import torch

from mvtrain.attention import attend, execute, flex, kernels, varlen
from mvtrain.attention.merge import _merge_rows_
from mvtrain.attention.plan import Geometry
from mvtrain.attention.reference import attend as reference
from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import SCHEMES, Layout
from tests.layouts import TAG, random_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ALL = 99


def inputs(layout: Layout, heads: int, key_heads: int, width: int, dtype=torch.bfloat16) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(layout.num_tokens)
    shapes = [(layout.num_tokens, h, width) for h in (heads, key_heads, key_heads, heads)]
    q, k, v, dout = (torch.randn(s, generator=random).cuda().to(dtype) for s in shapes)
    return [*(x.requires_grad_() for x in (q, k, v)), dout]


def run(attend, q, k, v, dout, *args) -> list[torch.Tensor]:
    out = attend(q, k, v, *args)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), dout)]


def errors(attend, tensors, layout, *args) -> list[float]:
    """Relative errors of out, dq, dk, dv against the dense reference in float64."""
    *qkv, dout = tensors
    exact = [x.detach().double().requires_grad_() for x in qkv]
    expected = run(reference, *exact, dout.double(), layout, 0.2)
    found = run(attend, *tensors, layout, 0.2, *args)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True)]


def kernel_or_skip(name: str, width: int, groups: int, dtype=torch.bfloat16) -> str:
    """Skips what is not installed or not made for this; a kernel that is there and gives something else fails."""
    tensors = TensorKind(torch.device("cuda"), dtype, groups, width)
    problem = kernels.probe(name, tensors)
    if problem and (problem.startswith("not installed") or problem == kernels.load(name).unsupported(tensors)):
        pytest.skip(f"{name}: {problem}")
    assert not problem, f"{name}: {problem}"
    return name


def test_a_kernel_was_found():
    name, reason = kernels.choose(TensorKind(torch.device("cuda"), torch.bfloat16, 4, 128))
    print(f"\nchosen: {name}: {reason}")
    assert name is not None, reason


@pytest.mark.parametrize("kernel", kernels.KERNELS["cuda"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("heads", [(8, 8), (6, 2), (10, 2)])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("levels", [0, varlen.AUTOMATIC, ALL])
def test_varlen_equals_the_reference(levels, width, heads, scheme, kernel):
    kernel_or_skip(kernel, width, heads[0] // heads[1])
    for seed in range(12):
        layout = random_layout(seed, scheme)
        misses = errors(varlen.attend, inputs(layout, *heads, width), layout, kernel, levels)
        assert max(misses) < 2e-2, f"seed {seed}: {misses}"


@pytest.mark.parametrize("kernel", kernels.KERNELS["cuda"])
def test_joined_parts_are_about_as_exact_as_one_call(kernel):
    """Parts leave these kernels in bfloat16, so joined ones carry one rounding more than a single call."""
    kernel_or_skip(kernel, 128, 4)
    layout = Layout.pack([random_layout(seed) for seed in range(8)])
    tensors = inputs(layout, 8, 2, 128)
    one, joined = (errors(varlen.attend, tensors, layout, kernel, levels) for levels in (0, ALL))
    for name, a, b in zip(("out", "dq", "dk", "dv"), joined, one, strict=True):
        assert a < 1.5 * b, f"{name}: {a:.2e} joined, {b:.2e} in one call"


@pytest.mark.parametrize("kernel", kernels.KERNELS["cuda"])
def test_empty_queries_and_empty_keys(kernel):
    """Sequences without keys give 0 and -inf and no gradient; sequences without queries give no gradient."""
    kernel_or_skip(kernel, 64, 1)
    module = kernels.load(kernel)
    path = [TAG.path, *[1] * 200, TAG.end_path]
    ids = [1] * 150 + [TAG.parallel, TAG.goal, TAG.end_goal, *path, *path]
    ids += [TAG.conclusion, TAG.end_conclusion, TAG.end_parallel, *[1] * 90]
    document = Layout.from_ids(ids, TAG)
    layout = Layout.pack([document, document])
    (call,) = Geometry(layout).plan(1).on(torch.device("cuda")).calls[1:]
    assert 0 in call.lengths_q and 0 in call.lengths_k
    q, k, v, dout = (x.detach() for x in inputs(layout, 2, 2, 64))
    rows, keys = slice(*call.query_rows), slice(*call.key_rows)
    out, lse = module.forward(q[rows], k[keys], v[keys], call, 0.2)
    lse_full = torch.where(lse.isinf(), 0.0, lse)
    dq, dk, dv = module.backward(dout[rows], q[rows], k[keys], v[keys], out, lse_full, call, 0.2)
    query = key = 0
    for length_q, length_k in zip(call.lengths_q, call.lengths_k, strict=True):
        if not length_k:
            empty = slice(query, query + length_q)
            assert (lse[:, empty] == float("-inf")).all() and not out[empty].any() and not dq[empty].any()
        if not length_q:
            empty = slice(key, key + length_k)
            assert not dk[empty].any() and not dv[empty].any()
        query, key = query + length_q, key + length_k
    for gradient in (dq, dk, dv):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("heads", [(8, 8), (6, 2)])
def test_flex_equals_the_reference(heads, scheme):
    problem = flex.unsupported(TensorKind(torch.device("cuda"), torch.bfloat16, heads[0] // heads[1], 64))
    assert problem is None, problem
    for seed in range(6):
        layout = Layout.pack([random_layout(seed, scheme), random_layout(seed + 20, scheme)])
        misses = errors(flex.attend, inputs(layout, *heads, 64), layout)
        assert max(misses) < 2e-2, f"seed {seed}: {misses}"


@pytest.mark.parametrize("levels", [0, ALL])
def test_deterministic_algorithms_repeat_to_the_bit(levels):
    layout = Layout.pack([random_layout(seed) for seed in range(8)])
    tensors = inputs(layout, 8, 2, 64)
    torch.use_deterministic_algorithms(True)
    try:
        first, *others = (run(varlen.attend, *tensors, layout, 0.2, None, levels) for _ in range(4))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_the_fused_merge_equals_pytorch():
    out, part = (torch.randn(1000, 6, 128, device="cuda") for _ in range(2))
    lse, part_lse = (torch.randn(6, 1000, device="cuda") for _ in range(2))
    part_lse[:, 100:300] = float("-inf")
    expected, expected_lse = out.clone(), lse.clone()
    _merge_rows_(expected, expected_lse, part, part_lse)
    execute.merge_(out, lse, part, part_lse)
    assert (out - expected).abs().max() < 1e-5 and (lse - expected_lse).abs().max() < 1e-5


def test_torch_compile_with_inductor():
    def twice(q, k, v, layout):
        return attend(q, k, v, layout, scale=0.2) * 2

    compiled = torch.compile(twice, fullgraph=True)
    for seed in (3, 6, 7):
        layout = random_layout(seed)
        tensors = inputs(layout, 6, 2, 64)
        expected = run(twice, *tensors, layout)
        for a, b in zip(run(compiled, *tensors, layout), expected, strict=True):
            assert (a.float() - b.float()).norm() <= 1e-2 * b.float().norm()


def test_float32_is_refused_by_flash_kernels_with_the_remedy():
    layout = random_layout(1)
    q = torch.zeros(layout.num_tokens, 2, 64, device="cuda")
    with pytest.raises(ValueError, match="precision: bf16"):
        attend(q, q, q, layout, backend="varlen")
