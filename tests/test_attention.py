"""Every backend against the dense reference, forward and backward; the reference against transformers and by hand."""

import pytest
import torch

from mvtrain.attention import attend, register
from mvtrain.attention.transformers_backend import multiverse_attention
from mvtrain.layout import SCHEMES, Layout
from tests.brute_force import random_document
from tests.tiny import FAMILIES, tiny_model, tiny_tags

TAG = tiny_tags()
register()


def layout_of(seed: int, scheme: str = "isolated") -> Layout:
    """Two or three packed documents with nested blocks, lengths that divide nothing."""
    documents = [random_document(seed * 10 + i, TAG, scheme, max_depth=3) for i in range(2 + seed % 2)]
    return Layout.pack([Layout.from_ids(d.ids, TAG, scheme) for d in documents])


def inputs(layout: Layout, heads: int, key_heads: int, dtype: torch.dtype, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(layout.num_tokens)
    shapes = [(layout.num_tokens, h, width) for h in (heads, key_heads, key_heads)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def output_and_gradients(backend: str, tensors: list[torch.Tensor], layout: Layout) -> list[torch.Tensor]:
    out_THD = attend(*tensors, layout, backend=backend)
    weight_THD = torch.linspace(-1, 1, out_THD.numel(), dtype=torch.float64).view(out_THD.shape).to(out_THD.dtype)
    return [out_THD, *torch.autograd.grad((out_THD * weight_THD).sum(), tensors)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_varlen_equals_reference_in_fp64(seed, heads, scheme):
    layout = layout_of(seed, scheme)
    tensors = inputs(layout, *heads, torch.float64)
    expected = output_and_gradients("reference", tensors, layout)
    found = output_and_gradients("varlen", tensors, layout)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert (a - b).abs().max() < 1e-11, f"{name} misses by {(a - b).abs().max():.2e}"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)])
def test_varlen_in_training_dtypes(dtype, tolerance):
    layout = layout_of(3)
    tensors = inputs(layout, 6, 2, dtype)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    expected = output_and_gradients("reference", exact, layout)
    for a, b in zip(output_and_gradients("varlen", tensors, layout), expected, strict=True):
        assert a.dtype == dtype
        assert (a - b).norm() / b.norm() < tolerance


def test_nested_and_packed_layouts_occur_above():
    layouts = [layout_of(seed) for seed in range(6)]
    assert max(len(layout.documents) for layout in layouts) == 3
    assert any(len(node.sees) > 1 for layout in layouts for node in layout.nodes), "no node sees two ranges"


def test_a_wrong_layout_is_noticed():
    """Negative control: plain causal attention differs where a block stands, and nowhere before it."""
    document = random_document(4, TAG, max_blocks=1)
    layout, plain = Layout.from_ids(document.ids, TAG), Layout.from_ids([1] * len(document.ids), TAG)
    second_path = [i for i, id in enumerate(document.ids) if id == TAG.path][1]
    tensors = inputs(layout, 4, 4, torch.float64)
    difference_T = (attend(*tensors, layout) - attend(*tensors, plain)).abs().amax((1, 2))
    assert difference_T[: second_path - 2].max() < 1e-12
    assert difference_T[second_path] > 1e-3


def test_one_token_by_hand():
    """Path 2's only token sees the prompt (v = 1) and itself (v = 5), not path 1 (v = 100). Equal scores: the mean."""
    ids = [1, TAG.parallel, TAG.goal, TAG.end_goal, TAG.path, TAG.end_path, TAG.path, TAG.end_path]
    ids += [TAG.conclusion, TAG.end_conclusion, TAG.end_parallel]
    layout = Layout.from_ids(ids, TAG)
    v_TKD = torch.tensor([1.0, 1, 1, 1, 100, 100, 5, 7, 0, 0, 0], dtype=torch.float64).view(-1, 1, 1).expand(-1, 1, 8)
    zero = torch.zeros(11, 1, 8, dtype=torch.float64)
    for backend in ("reference", "varlen"):
        out_T = attend(zero, zero, v_TKD, layout, backend=backend)[:, 0, 0]
        assert out_T[6].item() == pytest.approx((4 * 1 + 5) / 5)
        assert out_T[8].item() == pytest.approx((4 * 1 + 2 * 100 + 5 + 7 + 0) / 9)


def test_shapes_and_backends_are_refused_with_what_would_be_right():
    layout = Layout.from_ids([1, 2, 3], TAG)
    q, k = torch.zeros(3, 4, 8), torch.zeros(3, 3, 8)
    with pytest.raises(ValueError, match="K a divisor of H"):
        attend(q, k, k, layout)
    with pytest.raises(ValueError, match="choose one of auto, varlen, flex, reference"):
        attend(q, q, q, layout, backend="flash")
    with pytest.raises(ValueError, match="layout describes 3 tokens"):
        attend(*[torch.zeros(4, 4, 8)] * 3, layout)
    with pytest.raises(ValueError, match="use float32 or bfloat16"):
        attend(*[q.half()] * 3, layout, backend="varlen")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_block_logits_equal_stock_transformers(family):
    model = tiny_model(family, dtype=torch.float64)
    ids_BT = torch.randint(0, 200, (1, 50), generator=torch.Generator().manual_seed(0))
    model.set_attn_implementation("sdpa")
    expected = model(ids_BT).logits
    model.set_attn_implementation("multiverse")
    layout = Layout.from_ids(ids_BT[0], TAG)
    found = model(ids_BT, position_ids=layout.position_ids[None], layout=layout, use_cache=False).logits
    assert (found - expected).abs().max() < 1e-10
    assert (model(ids_BT).logits - expected).abs().max() < 1e-10, "without a layout it is the stock model"


def test_padded_generation_still_works():
    """A 2-D padding mask is honoured: a left-padded prompt generates what it generates alone."""
    model = tiny_model("qwen2", dtype=torch.float64)
    model.set_attn_implementation("multiverse")
    short, long = torch.tensor([[5, 6, 7]]), torch.tensor([[9, 8, 7, 6, 5, 4]])
    padded = torch.cat([torch.cat([torch.zeros(1, 3, dtype=torch.long), short], 1), long])
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    together = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)[:, 6:]
    alone = [model.generate(x, max_new_tokens=8, do_sample=False)[:, x.shape[1] :] for x in (short, long)]
    assert torch.equal(together, torch.cat(alone))


def hidden_states(model, ids: list[int], scheme: str, layout_ids: list[int] | None = None) -> torch.Tensor:
    """(layers + 1, T, width) of every layer."""
    layout = Layout.from_ids(layout_ids or ids, TAG, scheme)
    output = model(
        torch.tensor([ids]),
        position_ids=layout.position_ids[None],
        layout=layout,
        use_cache=False,
        output_hidden_states=True,
    )
    return torch.stack([*output.hidden_states, torch.nn.functional.pad(output.logits, (0, 0))[..., :32]])[:, 0]


def two_path_ids() -> tuple[list[int], int, range, int]:
    """ids, a token of path 1, the tokens of path 2 (its separator included), the conclusion's index."""
    separator, path_1, path_2 = 20, [30, 31, 32], [40, 41]
    ids = [1, 2, TAG.parallel, TAG.goal, TAG.end_goal, separator, TAG.path, *path_1, TAG.end_path]
    start = len(ids)
    ids += [separator, TAG.path, *path_2, TAG.end_path]
    end = len(ids)
    ids += [separator, TAG.conclusion, TAG.end_conclusion, TAG.end_parallel, 3]
    return ids, 8, range(start, end), end + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_siblings_cannot_influence_each_other_through_any_layer(family):
    model = tiny_model(family, dtype=torch.float64, num_hidden_layers=4)
    model.set_attn_implementation("multiverse")
    ids, changed, sibling, conclusion = two_path_ids()
    other = [*ids[:changed], 99, *ids[changed + 1 :]]
    difference_LT = (hidden_states(model, ids, "isolated") - hidden_states(model, other, "isolated")).abs().amax(-1)
    assert difference_LT[:, sibling.start : sibling.stop].max() == 0, "a sibling changed"
    assert difference_LT[1:, conclusion].min() > 0, "control: the conclusion must see path 1"
    assert difference_LT[:, :changed].max() == 0


def test_the_original_scheme_leaks_through_the_newline_between_paths():
    """Negative control for the test above: it does find a leak where there is one, two layers up."""
    model = tiny_model("qwen2", dtype=torch.float64, num_hidden_layers=4)
    model.set_attn_implementation("multiverse")
    ids, changed, sibling, _ = two_path_ids()
    other = [*ids[:changed], 99, *ids[changed + 1 :]]
    difference_LT = (hidden_states(model, ids, "original") - hidden_states(model, other, "original")).abs().amax(-1)
    path_2 = slice(sibling.start + 1, sibling.stop)
    assert difference_LT[1, path_2].max() == 0, "one layer is not enough to leak"
    assert difference_LT[2, path_2].max() > 0, "the second layer must leak"


def test_the_order_of_paths_does_not_matter():
    model = tiny_model("qwen2", dtype=torch.float64)
    model.set_attn_implementation("multiverse")
    head, tail = [1, TAG.parallel, TAG.goal, TAG.end_goal], [TAG.conclusion, 9, TAG.end_conclusion, TAG.end_parallel]
    first, second = [TAG.path, 50, 51, TAG.end_path], [TAG.path, 60, 61, 62, 63, TAG.end_path]
    one = hidden_states(model, head + first + second + tail, "isolated")
    two = hidden_states(model, head + second + first + tail, "isolated")
    n, a, b = len(head), len(first), len(second)
    assert (one[:, n : n + a] - two[:, n + b : n + a + b]).abs().max() < 1e-12
    assert (one[:, n + a + b :] - two[:, n + a + b :]).abs().max() < 1e-10


def test_batches_padding_and_dropout_are_refused():
    model = tiny_model("qwen2")
    model.set_attn_implementation("multiverse")
    layout = Layout.from_ids([1, 2, 3], TAG)
    with pytest.raises(ValueError, match="pack it instead"):
        model(torch.ones(2, 3, dtype=torch.long), layout=layout, use_cache=False)
    with pytest.raises(ValueError, match="exclude each other"):
        mask = torch.ones(1, 3, dtype=torch.long)
        mask[0, 0] = 0
        model(torch.ones(1, 3, dtype=torch.long), attention_mask=mask, layout=layout, use_cache=False)
    query = torch.zeros(1, 2, 3, 8)
    for refused, why in (({"dropout": 0.1}, "set attention_dropout to 0"), ({"sliding_window": 2}, "sliding-window")):
        with pytest.raises(ValueError, match=why):
            multiverse_attention(model, query, query, query, None, layout=layout, **refused)
