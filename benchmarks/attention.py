"""Multiverse Attention against plain causal attention, a dense mask and FlexAttention, side by side in one run.

    python benchmarks/attention.py                                    # the device that is here
    python benchmarks/attention.py --lengths 8192 --heads 9,3,64      # queries, keys, width
    python benchmarks/attention.py --traces traces.jsonl --tokenizer runs/quickstart/base

Forms: `auto` is what training runs; `gather` and `merge` are the two ends of `levels`; `causal` is the same kernel on
the same documents without blocks, the limit to reach; `causal SDPA` is PyTorch's own; `dense` is scaled dot product
attention with a float mask of T x T, what the method's original code does (its mask counts as memory, not as time);
`flex` is FlexAttention, on CUDA. The forms take turns; times are medians over the turns.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.layouts import SHAPES, of_traces, synthetic, without_blocks
from benchmarks.measure import peak_mib, seconds, write_results
from mvtrain.attention import cost, flex, varlen
from mvtrain.attention.tensor_kind import TensorKind
from mvtrain.layout import Layout

ALL_LEVELS = 99


def main() -> None:
    options = _options()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = []
    for name, layout in _layouts(options):
        print(f"{name}, {layout.num_tokens:,} tokens ...", file=sys.stderr, flush=True)
        rows += _measure(name, layout, options.heads, device, dtype, options)
    command = "python benchmarks/attention.py " + " ".join(map(shlex.quote, sys.argv[1:]))
    write_results(options.name, "Attention, one layer, forward and backward", command.strip(), device, rows)


def _measure(name: str, layout: Layout, heads, device, dtype, options) -> list[dict]:
    inputs = _inputs(layout.num_tokens, heads, device, dtype)
    forms = _forms(layout, device, inputs, set(options.skip))
    memory, times = {}, {form: [] for form in forms}
    for form in list(forms):
        try:
            _pass(forms[form], inputs, device)  # what is done once: compilation, the plan
            if isinstance(forms[form], _Dense):
                forms[form].mask = None
            memory[form] = peak_mib(lambda form=form: _pass(forms[form], inputs, device), device)
        except torch.OutOfMemoryError:
            print(f"  {form}: out of memory", file=sys.stderr)
            del forms[form], times[form]
    for _ in range(options.turns):
        for form in forms:
            times[form].append(_pass(forms[form], inputs, device))
    total = {form: statistics.median(map(sum, times[form])) for form in forms}
    return [_row(name, layout, form, times[form], memory, total, inputs) for form in forms]


def _row(name, layout, form, times, memory, total, inputs) -> dict:
    forward, backward = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
    row = {
        "layout": name,
        "tokens": layout.num_tokens,
        "form": form,
        "forward ms": forward,
        "backward ms": backward,
        "both / causal": total[form] / total["causal"],
        "peak MiB": memory[form],
    }
    levels = {"gather": 0, "merge": ALL_LEVELS, "auto": varlen.AUTOMATIC}.get(form)
    if levels is not None:
        row |= _estimate(layout, levels, inputs)
    return row


def _estimate(layout: Layout, levels: int, inputs) -> dict:
    """What the cost model says, to be read beside what was measured."""
    q, k, *_ = inputs
    heads, geometry = cost.Heads.of(q, k), varlen.geometry_of(layout.encoded)
    model = cost.CUDA if q.is_cuda else cost.CPU
    taken = varlen.plan_for(layout.encoded, heads, q.device, levels).levels
    return {
        "levels": taken,
        "keys gathered / T": geometry.num_gathered(taken) / layout.num_tokens,
        "estimated ms": cost.seconds(geometry, taken, heads, model) * 1e3,
    }


def _pass(form: Callable, inputs, device: torch.device) -> tuple[float, float]:
    """Seconds of forward and of backward."""
    q, k, v, dout = inputs
    forward, out = seconds(lambda: form(q, k, v), device)
    backward, _ = seconds(lambda: torch.autograd.grad(out, (q, k, v), dout), device)
    return forward, backward


def _forms(layout: Layout, device: torch.device, inputs, skipped: set[str]) -> dict[str, Callable]:
    scale = inputs[0].shape[2] ** -0.5
    plain = without_blocks(layout)

    def ours(layout: Layout, levels: int) -> Callable:
        return lambda q, k, v: varlen.attend(q, k, v, layout, scale, levels=levels)

    forms = {
        "causal": ours(plain, 0),
        "causal SDPA": lambda q, k, v: _causal_sdpa(q, k, v, layout),
        "auto": ours(layout, varlen.AUTOMATIC),
        "gather": ours(layout, 0),
        "merge": ours(layout, ALL_LEVELS),
        "dense": _Dense(layout, device, inputs[0].dtype),
        "flex": lambda q, k, v: flex.attend(q, k, v, layout, scale),
    }
    if flex.unsupported(TensorKind.of(*inputs[:2])):
        skipped = skipped | {"flex"}
    return {name: form for name, form in forms.items() if name == "causal" or name not in skipped}


class _Dense:
    """Scaled dot product attention with a float mask, made at the first call."""

    def __init__(self, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
        self.layout, self.device, self.dtype = layout, device, dtype
        self.mask: torch.Tensor | None = None

    def __call__(self, q_THD, k_TKD, v_TKD) -> torch.Tensor:
        if self.mask is None:
            hidden = ~self.layout.dense_mask().to(self.device)
            self.mask = torch.zeros(hidden.shape, device=self.device, dtype=self.dtype).masked_fill_(
                hidden, float("-inf")
            )
        q, k, v = _repeated(q_THD, k_TKD, v_TKD)
        return scaled_dot_product_attention(q, k, v, self.mask[None, None])[0].transpose(0, 1)


def _causal_sdpa(q_THD, k_TKD, v_TKD, layout: Layout) -> torch.Tensor:
    """Document by document."""
    q, k, v = _repeated(q_THD, k_TKD, v_TKD)
    outs = [
        scaled_dot_product_attention(*(x[:, :, start:end] for x in (q, k, v)), is_causal=True)
        for start, end in layout.documents
    ]
    return torch.cat(outs, 2)[0].transpose(0, 1)


def _repeated(q_THD, k_TKD, v_TKD) -> list[torch.Tensor]:
    """(1, H, T, D), keys once per query head."""
    groups = q_THD.shape[1] // k_TKD.shape[1]
    tensors = (q_THD, k_TKD.repeat_interleave(groups, 1), v_TKD.repeat_interleave(groups, 1))
    return [x.transpose(0, 1)[None] for x in tensors]


def _inputs(num_tokens: int, heads: tuple[int, int, int], device, dtype) -> list[torch.Tensor]:
    """q, k, v, and the gradient of the output."""
    num_heads, num_keys, width = heads
    shapes = [(num_tokens, n, width) for n in (num_heads, num_keys, num_keys, num_heads)]
    q, k, v, dout = (torch.randn(shape, device=device).to(dtype) for shape in shapes)
    return [*(x.requires_grad_() for x in (q, k, v)), dout]


def _layouts(options):
    for shape in options.shapes:
        for length in options.lengths:
            yield shape, synthetic(shape, length)
    if options.traces:
        for length in options.lengths:
            yield "traces", of_traces(Path(options.traces), options.tokenizer, length)


def _options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--dtype", default="bfloat16" if on_gpu else "float32", choices=["bfloat16", "float16", "float32", "float64"])
    add("--heads", type=_heads, default=(40, 8, 128) if on_gpu else (9, 3, 64), help="query heads, key heads, width")
    add("--lengths", type=int, nargs="+", default=[2048, 8192, 16384, 32768] if on_gpu else [2048, 4096, 8192])
    add("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    add("--traces", help="JSONL with a column `response`; their layouts are measured too")
    add("--tokenizer", help="folder of a converted checkpoint, for --traces")
    add("--skip", nargs="*", default=[], help="forms to leave out, for instance dense at lengths that no mask fits")
    add("--turns", type=int, default=7)
    add("--threads", type=int, help="of torch on the CPU; all by default")
    add("--name", default="attention", help="of the files in benchmarks/results")
    options = parser.parse_args()
    if options.traces and not options.tokenizer:
        parser.error("--traces needs --tokenizer FOLDER, a checkpoint with the tags (mvtrain convert)")
    return options


def _heads(text: str) -> tuple[int, int, int]:
    parts = tuple(int(part) for part in text.split(","))
    if len(parts) != 3 or min(parts) < 1 or parts[0] % parts[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: give query heads, key heads (a divisor), width, as in 40,8,128")
    return parts


if __name__ == "__main__":
    main()
