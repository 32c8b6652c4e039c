"""Which backend and kernel run: found by a probe call, said once, refused with what would work."""

import logging

import pytest
import torch

from mvtrain.attention import attend, kernels, registry
from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import Layout
from tests.layouts import TAG

CPU = torch.device("cpu")
FLOAT = TensorKind(CPU, torch.float32, 2, 16)


@pytest.fixture(autouse=True)
def fresh_choice():
    yield
    kernels.choose.cache_clear()
    registry._selected.cache_clear()


def use_kernels(monkeypatch, **modules: str) -> None:
    monkeypatch.setitem(kernels.KERNELS, "cpu", modules)
    kernels.choose.cache_clear()
    registry._selected.cache_clear()


def test_the_first_kernel_that_works_is_taken_and_the_others_faults_are_said_once(monkeypatch, caplog):
    use_kernels(
        monkeypatch,
        missing="tests.no_such_kernels",
        wrong="tests.kernels_wrong",
        torch_cpu="mvtrain.attention.kernels_cpu",
    )
    with caplog.at_level(logging.INFO, "mvtrain.attention.kernels"):
        assert kernels.choose(FLOAT)[0] == "torch_cpu"
        kernels.choose(FLOAT)
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "missing: not installed (No module named 'tests.no_such_kernels')" in message
    assert "wrong: its dq is wrong by" in message and "levels" in message


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError, OSError, LookupError])
def test_a_kernel_that_raises_is_passed_over_with_its_words(monkeypatch, kind):
    import tests.kernels_wrong as wrong

    def forward(*args):
        raise kind("no kernel image is available\nand more")

    monkeypatch.setattr(wrong, "forward", forward)
    use_kernels(monkeypatch, wrong="tests.kernels_wrong")
    assert kernels.choose(FLOAT) == (None, f"wrong: {kind.__name__}: no kernel image is available")


def test_mixed_dtypes_are_refused():
    layout = Layout.from_ids([1] * 10, TAG)
    q, k = torch.randn(10, 4, 16), torch.randn(10, 2, 16)
    with pytest.raises(ValueError, match=r"one dtype and device; got torch\.float32 .*, torch\.bfloat16 on cpu"):
        attend(q, k, k.bfloat16(), layout)


def test_without_a_kernel_short_sequences_take_the_reference_and_long_ones_are_refused(monkeypatch, caplog):
    use_kernels(monkeypatch, wrong="tests.kernels_wrong")
    layout = Layout.from_ids([1] * 10, TAG)
    q, k = torch.randn(10, 4, 16), torch.randn(10, 2, 16)
    with caplog.at_level(logging.WARNING):
        out = attend(q, k, k, layout)
        attend(q, k, k, layout)
    assert torch.equal(out, attend(q, k, k, layout, backend="reference"))
    (record,) = caplog.records
    assert "reference" in record.getMessage() and "its dq is wrong" in record.getMessage()
    long = torch.zeros(registry.REFERENCE_LIMIT + 1, 1, 16)
    with pytest.raises(ValueError, match=r"varlen: .*its dq is wrong.*backend='reference'"):
        attend(long, long, long, Layout.from_ids([1] * len(long), TAG))


def test_every_cpu_dtype_passes_the_probe_at_any_width():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for width in (8, 16, 64, 80, 128):
            assert kernels.probe("torch_cpu", TensorKind(CPU, dtype, 3, width)) is None


def test_what_cannot_run_here_says_what_can():
    layout, q = Layout.from_ids([1, 2], TAG), torch.zeros(2, 1, 16)
    with pytest.raises(ValueError, match="FlexAttention has a backward pass on CUDA only"):
        attend(q, q, q, layout, backend="flex")
    with pytest.raises(ValueError, match="unknown attention kernel 'fast'; choose one of flash_attn_3, flash_attn"):
        kernels.load("fast")
    meta = torch.zeros(5000, 1, 16, device="meta")
    with pytest.raises(ValueError, match="no flash kernel for device 'meta'; use cpu or cuda"):
        attend(meta, meta, meta, Layout.from_ids([1] * 5000, TAG))
