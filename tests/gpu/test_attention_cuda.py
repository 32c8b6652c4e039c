"""The CUDA kernels against the dense reference. Skipped where there is no GPU."""

import pytest
import torch

from mvtrain.attention import attend, kernels_cuda
from mvtrain.layout import SCHEMES, Layout
from tests.brute_force import random_document
from tests.tiny import tiny_tags

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TAG = tiny_tags()


def packed_layout(seed: int, scheme: str) -> Layout:
    documents = [random_document(seed * 10 + i, TAG, scheme, max_depth=3) for i in range(3)]
    return Layout.pack([Layout.from_ids(d.ids, TAG, scheme) for d in documents])


@pytest.mark.parametrize("package", ["flash_attn", "torch"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("heads", [(8, 8), (6, 2)])
@pytest.mark.parametrize("width", [64, 128])
def test_varlen_on_cuda_equals_reference(width, heads, scheme, package, monkeypatch):
    if package == "flash_attn" and not kernels_cuda._has_flash_attn():
        pytest.skip("flash_attn is not installed")
    monkeypatch.setattr(kernels_cuda, "_has_flash_attn", lambda: package == "flash_attn")
    layout = packed_layout(3, scheme)
    generator = torch.Generator().manual_seed(0)
    shapes = [(layout.num_tokens, h, width) for h in (heads[0], heads[1], heads[1])]
    tensors = [torch.randn(s, generator=generator).cuda().bfloat16().requires_grad_() for s in shapes]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    weight = torch.randn(shapes[0], generator=generator).cuda()

    def run(backend, qkv):
        out = attend(*qkv, layout, backend=backend)
        return [out, *torch.autograd.grad((out * weight.to(out.dtype)).sum(), qkv)]

    for name, found, expected in zip(
        ("out", "dq", "dk", "dv"), run("varlen", tensors), run("reference", exact), strict=True
    ):
        miss = ((found - expected).norm() / expected.norm()).item()
        assert miss < 2e-2, f"{name} misses by {miss:.1e}"


def test_fp32_on_cuda_is_refused_with_the_remedy():
    layout = packed_layout(1, "isolated")
    q = torch.zeros(layout.num_tokens, 2, 64, device="cuda")
    with pytest.raises(ValueError, match="precision: bf16"):
        attend(q, q, q, layout, backend="varlen")
