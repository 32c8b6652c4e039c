"""Joining two parts of attention: against softmax over all keys, in PyTorch and as the Triton kernel."""

import importlib
import sys

import pytest
import torch

from mvtrain.attention.merge import merge_


def parts(num_rows: int, heads: int, width: int, empty: slice = slice(0, 0)) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(out, lse, part, part_lse) of two halves of the keys, float32, and the result over all keys, float64."""
    random = torch.Generator().manual_seed(num_rows)
    q, k, v = (torch.randn(n, heads, width, generator=random, dtype=torch.float64) for n in (num_rows, 20, 20))
    scores = torch.einsum("qhd,khd->hqk", q, k)
    scores[:, empty, 8:] = float("-inf")

    def attention(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        weights = scores[..., keys].softmax(-1).nan_to_num(0.0)
        return torch.einsum("hqk,khd->qhd", weights, v[keys]), scores[..., keys].logsumexp(-1)

    halves = [*attention(slice(0, 8)), *attention(slice(8, 20))]
    return [x.float() for x in halves], attention(slice(0, 20))


@pytest.fixture
def triton_merge(monkeypatch):
    """The Triton kernel in Triton's interpreter, which runs it on the CPU."""
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(sys.modules, "mvtrain.attention.merge_triton", raising=False)
    module = importlib.import_module("mvtrain.attention.merge_triton")
    yield module.merge_on_gpu_
    sys.modules.pop("mvtrain.attention.merge_triton")


def check(merge, num_rows: int, heads: int, width: int) -> None:
    empty = slice(3, 9)
    (out, lse, part, part_lse), (expected, expected_lse) = parts(num_rows, heads, width, empty)
    before = out[empty].clone()
    merge(out, lse, part, part_lse)
    assert (out - expected).abs().max() < 1e-5
    assert (lse - expected_lse).abs().max() < 1e-5
    assert torch.equal(out[empty], before), "rows without keys in the part stay as they are, to the bit"


SHAPES = [(10, 1, 16), (64, 2, 64), (133, 3, 80)]


@pytest.mark.parametrize("num_rows, heads, width", SHAPES)
def test_merge(num_rows, heads, width):
    check(merge_, num_rows, heads, width)


@pytest.mark.parametrize("num_rows, heads, width", SHAPES)
def test_the_triton_kernel(num_rows, heads, width, triton_merge):
    check(triton_merge, num_rows, heads, width)


def test_the_triton_kernel_on_rows_in_the_middle_and_a_bf16_part(triton_merge):
    """As a plan calls it: rows of larger tensors, so strides differ from shapes."""
    (out, lse, part, part_lse), (expected, _) = parts(50, 2, 32)
    rows = slice(11, 37)
    untouched = out[:11].clone(), out[37:].clone()
    triton_merge(out[rows], lse[:, rows], part[rows].bfloat16(), part_lse[:, rows])
    assert (out[rows] - expected[rows]).abs().max() < 2e-2
    assert torch.equal(out[:11], untouched[0]) and torch.equal(out[37:], untouched[1])
