"""One training step on one device: tokens per second, model FLOPs utilisation and peak memory.

    python benchmarks/train_step.py                                     # the device that is here
    python benchmarks/train_step.py --model qwen2.5-1.5b --tokens 32768 --checkpointing attention

Random weights in the shape of a known model; forward, the chunked loss, backward, and AdamW on the model's own dtype
(no ZeRO, no fp32 copy). The forms take turns: `multiverse` is what training runs, `causal` the same step on the same
documents without blocks, `dense` stock attention under a T x T mask, as the method's original code does it.

FLOPs count 6 per parameter and token (the head included, the embedding's look-up not) and 12 x head width per visible
pair, head and layer; what checkpointing computes twice does not count.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaConfig, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.layouts import SHAPES, synthetic, without_blocks
from benchmarks.measure import peak_mib, seconds, write_results
from mvtrain.attention import register
from mvtrain.attention.checkpointing import contexts_that_save_attention
from mvtrain.data.collate import IGNORED, shifted
from mvtrain.layout import Layout
from mvtrain.train.flops import peak_flops, step_flops
from mvtrain.train.model import SumOfTokenLosses

MODELS = {
    "qwen2.5-1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=131072,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192,
    ),
}  # fmt: skip


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    layout = synthetic(options.shape, options.tokens)
    module = _module(options, device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6, foreach=device.type == "cuda")
    steps = {form: _step(form, module, optimizer, layout, device) for form in options.forms}
    memory, times = {}, {form: [] for form in steps}
    for form in list(steps):
        print(f"{form} ...", file=sys.stderr, flush=True)
        try:
            steps[form]()  # the optimizer's state, and what is compiled or planned once
            memory[form] = peak_mib(steps[form], device)
        except torch.OutOfMemoryError:
            print(f"{form}: out of memory", file=sys.stderr)
            del steps[form], times[form]
    for _ in range(options.turns):
        for form, step in steps.items():
            times[form].append(seconds(step, device)[0])
    medians = {form: statistics.median(values) for form, values in times.items()}
    rows = [_row(form, options, module, layout, medians, memory[form], device) for form in steps]
    command = " ".join(["python benchmarks/train_step.py", *map(shlex.quote, sys.argv[1:])])
    write_results("train_step", f"One training step, {options.model}-shaped", command, device, rows)


def _row(form: str, options, module, layout: Layout, medians: dict[str, float], memory: float, device) -> dict:
    flops = _flops(module, layout if form != "causal" else without_blocks(layout)) / medians[form]
    peak = peak_flops(device)
    return {
        "form": form,
        "layout": options.shape,
        "tokens": layout.num_tokens,
        "checkpointing": options.checkpointing,
        "s / step": medians[form],
        "tokens / s": layout.num_tokens / medians[form],
        "time / causal": medians[form] / medians["causal"] if "causal" in medians else None,
        "TFLOP / s": flops / 1e12,
        "MFU": f"{flops / peak:.1%}" if peak else "",
        "peak MiB above weights and optimizer": memory,
    }


def _flops(module: SumOfTokenLosses, layout: Layout) -> float:
    num_parameters = sum(p.numel() for p in module.lm.parameters())
    return step_flops(module.lm.config, num_parameters, layout.num_tokens, layout.num_visible_pairs)


def _step(form: str, module: SumOfTokenLosses, optimizer, layout: Layout, device) -> Callable[[], None]:
    layout = without_blocks(layout) if form == "causal" else layout
    ids = torch.randint(0, 1000, (1, layout.num_tokens), device=device)
    targets = shifted(ids, IGNORED)
    positions = layout.position_ids[None].to(device)
    run = _dense_loss(module, layout, device) if form == "dense" else module

    def step() -> None:
        loss, _ = run(input_ids=ids, position_ids=positions, targets=targets, layout=layout)
        (loss / layout.num_tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _dense_loss(module: SumOfTokenLosses, layout: Layout, device) -> Callable:
    """The same loss with PyTorch's attention under a mask that every step makes anew, as a collator does."""

    def loss(input_ids, position_ids, targets, layout):
        hidden_TT = ~layout.dense_mask().to(device)
        mask = torch.zeros(hidden_TT.shape, device=device, dtype=module.lm.dtype).masked_fill_(hidden_TT, float("-inf"))
        module.lm.set_attn_implementation("sdpa")
        try:
            hidden = module.lm.model(
                input_ids=input_ids, position_ids=position_ids, attention_mask=mask[None, None], use_cache=False
            ).last_hidden_state
        finally:
            module.lm.set_attn_implementation(register())
        return module.head(hidden[0], targets[0], torch.zeros_like(targets[0]))

    return loss


def _module(options, device) -> SumOfTokenLosses:
    torch.manual_seed(0)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(
            MODELS[options.model], dtype=getattr(torch, options.dtype), attn_implementation=register()
        )
    if options.checkpointing != "none":
        contexts = {"context_fn": contexts_that_save_attention} if options.checkpointing == "attention" else {}
        lm.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    return SumOfTokenLosses(lm).train()


def _options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--model", choices=list(MODELS), default="qwen2.5-1.5b" if on_gpu else "smollm2-135m")
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    add("--tokens", type=int, default=32768 if on_gpu else 2048)
    add("--shape", choices=list(SHAPES), default="packed")
    add("--checkpointing", choices=["none", "full", "attention"], default="attention" if on_gpu else "none",
        help="full: recompute layers; attention: recompute them but for their attention")  # fmt: skip
    add("--forms", nargs="+", choices=["multiverse", "causal", "dense"], default=["multiverse", "causal", "dense"])
    add("--turns", type=int, default=5 if on_gpu else 3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
