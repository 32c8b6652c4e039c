"""The generation engine on one device: its step, sequential decoding, what parallel paths gain, and memory.

    python benchmarks/engine.py                       # the device that is here; all four parts
    python benchmarks/engine.py --parts step memory --dtype float32

Random weights in the shape of a known model; texts are forced, so that every form writes the same number of tokens.

- step: one engine step (scheduling, model, sampling) over transformers' own forward of the same rows, cache included.
- sequential: the engine without paths against transformers' `generate`, same prompts, same number of tokens.
- parallel: the same number of tokens in P paths and in sequence; `limit` is what a machine would gain that does nothing
  but read the weights and the cache once a step, `rows` is what this machine gains in the bare model's matrix products.
- memory: bytes that the process grows by for each cached token, over 2 x layers x key heads x head width x bytes.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, Qwen2Config
from transformers.models.auto import AutoModelForCausalLM

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measure import RESULTS, machine, seconds, write_results
from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.sampling import Sampler
from tests.soak import resident_mib
from tests.tiny import tiny_tags, tiny_tokenizer

TOKENIZER, TAGS = tiny_tokenizer(), tiny_tags()
MODELS = {
    "tiny": LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=300, max_position_embeddings=8192,
    ),
    "smollm2-135m": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49216, tie_word_embeddings=True, max_position_embeddings=32768,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=32768,
    ),
    "qwen2.5-1.5b": Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True, max_position_embeddings=32768,
    ),
}  # fmt: skip
PROMPT = 64
MEMORY = ((1, 4096), (8, 1000), (32, 300))
"""(requests, tokens of each) that memory is measured for."""


class Forced(Sampler):
    """Looks at the logits like any sampler, and then writes P paths of equal length, or no path and no end."""

    def __init__(self, vocab_size: int, num_paths: int, num_tokens: int) -> None:
        super().__init__(vocab_size)
        outline = [TAGS.outline, TAGS.end_outline]
        opening = [TAGS.parallel, TAGS.goal, *outline * num_paths, TAGS.end_goal]
        self.root = [*opening, TAGS.end_conclusion, TAGS.end_parallel, TOKENIZER.eos_token_id] if num_paths else []
        self.path_length = num_tokens // max(1, num_paths)

    def choose(self, logits_NV, branches):
        return [
            (self._token(branch), choice[1])
            for branch, choice in zip(branches, super().choose(logits_NV, branches), strict=True)
        ]

    def _token(self, branch) -> int:
        k = branch.num_sampled
        if branch.depth:
            return TAGS.end_path if k >= self.path_length else 65
        return self.root[k] if k < len(self.root) else 65


def main() -> None:
    options = _options()
    device = torch.device(options.device)
    model = make_model(options, device)
    command = " ".join(["python benchmarks/engine.py", *map(shlex.quote, sys.argv[1:])])
    for part in options.parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        title, rows = PARTS[part](model, options)
        name = f"engine_{part}_{'fp32' if options.dtype == 'float32' else 'bf16'}"
        write_results(name, f"{title}, {options.model}-shaped, {options.dtype}", command, device, rows)
        if part == "parallel":
            draw(rows, options, device, RESULTS / f"{name}-{device.type}.svg")


# (a) one step


def measure_step(model, options) -> tuple[str, list[dict]]:
    rows = [_compare_steps(model, options, batch) for batch in options.batches]
    return "One decoding step over the model's own forward", rows


def _compare_steps(model, options, batch: int) -> dict:
    engine = new_engine(model, batch, 0)
    for _ in range(batch):
        prompt = [k % 200 for k in range(options.context)]
        engine.add(prompt, SamplingParams(max_tokens=10_000, parallel=False))
    with engine.runner.engine_attention():
        while engine.scheduler.waiting or any(request.num_tokens == 0 for request in engine.scheduler.running):
            engine.step()
    stock = _stock_state(model, options.context, batch)
    bare, ours = [], []
    for _ in range(options.turns):
        bare.append(seconds(lambda: _stock_step(model, *stock), model.device)[0])
        with engine.runner.engine_attention():
            ours.append(seconds(engine.step, model.device)[0])
    ours_ms, bare_ms = 1e3 * statistics.median(ours), 1e3 * statistics.median(bare)
    ratio = ours_ms / bare_ms
    return {"batch": batch, "context": options.context, "engine ms": ours_ms, "bare forward ms": bare_ms,
            "engine / bare": ratio}  # fmt: skip


def _stock_state(model, context: int, batch: int):
    cache = DynamicCache(config=model.config)
    ids = torch.randint(0, 200, (batch, context), device=model.device)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    positions = torch.full((batch, 1), context, device=model.device)
    return cache, ids[:, :1], positions


@torch.no_grad()
def _stock_step(model, cache, ids, positions) -> None:
    model(input_ids=ids, past_key_values=cache, position_ids=positions, use_cache=True).logits[:, -1].argmax(
        -1
    ).tolist()
    cache.crop(-1)


# (b) sequential decoding


def measure_sequential(model, options) -> tuple[str, list[dict]]:
    rows = [_compare_generation(model, options, batch) for batch in options.batches if batch <= 16]
    return "Sequential decoding against transformers' generate", rows


def _compare_generation(model, options, batch: int) -> dict:
    prompts = [[(k + i) % 200 for k in range(PROMPT)] for i in range(batch)]
    engine, ids = new_engine(model, batch, 0), torch.tensor(prompts, device=model.device)
    params = SamplingParams(max_tokens=options.tokens, parallel=False)
    ours, theirs = [], []
    for _ in range(max(2, options.turns // 4)):
        ours.append(seconds(lambda: engine.generate(prompts, params), model.device)[0])
        theirs.append(seconds(lambda: _stock_generate(model, ids, options.tokens), model.device)[0])
    ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
    num_tokens = batch * options.tokens
    return {"batch": batch, "tokens": options.tokens, "engine tokens/s": num_tokens / ours_s,
            "transformers tokens/s": num_tokens / theirs_s, "engine / transformers": theirs_s / ours_s}  # fmt: skip


def _stock_generate(model, ids: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, max_new_tokens=num_tokens,
        pad_token_id=0,
    )  # fmt: skip


# (c) what paths gain


def measure_parallel(model, options) -> tuple[str, list[dict]]:
    rows = []
    for batch in options.parallel_batches:
        sequential = _generate(model, batch, 0, options.tokens)
        for num_paths in options.paths:
            parallel = _generate(model, batch, num_paths, options.tokens)
            rows.append(_gain(model, batch, num_paths, sequential, parallel, options))
            print(rows[-1], file=sys.stderr, flush=True)
    return "The same number of tokens in paths and in sequence", rows


def _generate(model, batch: int, num_paths: int, num_tokens: int) -> SimpleNamespace:
    """Seconds of the decoding alone: the prompts are in the cache before the clock starts."""
    engine = new_engine(model, batch, num_paths, num_tokens)
    params = SamplingParams(max_tokens=num_tokens if not num_paths else 8 * num_tokens, parallel=bool(num_paths))
    requests = [request for k in range(batch) for request in engine.add([(k + i) % 200 for i in range(PROMPT)], params)]
    completions: dict = {}
    with engine.runner.engine_attention():
        while engine.scheduler.waiting or any(request.num_tokens == 0 for request in requests):
            engine.step()
        began, before = time.perf_counter(), sum(request.num_tokens for request in requests)
        while len(completions) < batch:
            completions.update(engine.step())
    took = time.perf_counter() - began
    done = list(completions.values())
    return SimpleNamespace(seconds=took, num_tokens=sum(c.num_generated for c in done) - before,
                           critical_path=done[0].critical_path, parallelism=done[0].parallelism)  # fmt: skip


def _gain(model, batch: int, num_paths: int, sequential, parallel, options) -> dict:
    gain = (parallel.num_tokens / parallel.seconds) / (sequential.num_tokens / sequential.seconds)
    limit = parallel.parallelism * _limit(model, batch, options.tokens, parallel)
    rows_limit = parallel.parallelism * _matmul_seconds(model, batch) / _matmul_seconds(model, batch * num_paths)
    return {
        "batch": batch, "paths": num_paths, "parallelism": parallel.parallelism,
        "ms / token, sequence": 1e3 * sequential.seconds / sequential.num_tokens,
        "ms / token, paths": 1e3 * parallel.seconds / parallel.num_tokens,
        "speed-up": gain, "limit": limit, "speed-up / limit": gain / limit,
        "limit of rows": rows_limit, "speed-up / limit of rows": gain / rows_limit,
    }  # fmt: skip


def _limit(model, batch: int, num_tokens: int, parallel) -> float:
    """How the bytes that a step reads compare: weights once, and each request's cache, half full on average."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    per_token = Engine.bytes_per_token(model)
    sequential = weights + batch * per_token * (PROMPT + num_tokens / 2)
    in_paths = weights + batch * per_token * (PROMPT + parallel.parallelism * parallel.critical_path / 2)
    return sequential / in_paths


_matmuls: dict[tuple[int, int], float] = {}


@torch.no_grad()
def _matmul_seconds(model, num_rows: int) -> float:
    """All matrix products of the model, for so many rows: the least that a step could take on this machine."""
    key = (id(model), num_rows)
    if key not in _matmuls:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        inputs = {
            w: torch.randn(num_rows, w, device=model.device, dtype=model.dtype) for w in {m.in_features for m in layers}
        }
        run = lambda: [module(inputs[module.in_features]) for module in layers]  # noqa: E731
        run()
        _matmuls[key] = statistics.median(seconds(run, model.device)[0] for _ in range(7))
    return _matmuls[key]


def draw(rows: list[dict], options, device: torch.device, file: Path) -> None:
    """Speed-up over parallelism, one line for every batch, and the limits."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: pip install 'mvtrain[eval]'", file=sys.stderr)
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mvtrain"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for batch in options.parallel_batches:
        of_batch = [row for row in rows if row["batch"] == batch]
        x = [row["parallelism"] for row in of_batch]
        (line,) = axes.plot(x, [row["speed-up"] for row in of_batch], marker="o", label=f"batch {batch}")
        axes.plot(x, [row["limit of rows"] for row in of_batch], linestyle=":", color=line.get_color())
    ideal = sorted({row["parallelism"] for row in rows})
    axes.plot(ideal, ideal, color="black", linestyle="--", label="memory-bound limit")
    axes.plot([], [], color="grey", linestyle=":", label="matrix products alone")
    axes.set(xlabel="parallelism", ylabel="speed-up over sequential decoding", xscale="log", yscale="log")
    axes.set_title(f"{options.model}, {options.dtype}\n{machine(device)['device']}", fontsize=8)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


# (d) memory


def measure_memory(model, options) -> tuple[str, list[dict]]:
    rows = []
    for batch, length in options.memory:
        gc.collect()
        engine = new_engine(model, batch, 0)
        for _ in range(batch):
            engine.add([k % 200 for k in range(length)], SamplingParams(max_tokens=100, parallel=False))
        before = _held_mib(model.device)
        with engine.runner.engine_attention():
            while any(request.num_tokens == 0 for request in (*engine.scheduler.running, *engine.scheduler.waiting)):
                engine.step()
        pages = engine.cache.pages
        num_tokens = sum(pages.used(row) for row in pages.rows)
        measured = engine.cache.resident_bytes() / num_tokens
        rows.append({"requests": batch, "tokens of each": length, "bytes / token": measured,
                     "theoretical": engine.cache.bytes_per_token,
                     "measured / theoretical": measured / engine.cache.bytes_per_token,
                     "process grew by MiB": _held_mib(model.device) - before})  # fmt: skip
    return "Memory of the KV cache for each token in it", rows


def _held_mib(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mib()


PARTS = {
    "step": measure_step,
    "sequential": measure_sequential,
    "parallel": measure_parallel,
    "memory": measure_memory,
}


def new_engine(model, batch: int, num_paths: int, num_tokens: int = 0) -> Engine:
    engine = Engine(model, TOKENIZER, max_batch=batch, sampler=Forced(model.config.vocab_size, num_paths, num_tokens))
    if not num_paths:
        engine.markup.eos_ids = set()
    return engine


def make_model(options, device: torch.device):
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(MODELS[options.model], dtype=getattr(torch, options.dtype)).eval()


def _options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    add("--model", choices=list(MODELS), default="qwen2.5-1.5b" if on_gpu else "smollm2-135m")
    add("--device", default="cuda" if on_gpu else "cpu")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    add("--batches", type=int, nargs="+", default=[1, 4, 16, 64], help="requests, for step and sequential")
    add("--parallel-batches", type=int, nargs="+", default=[1, 4, 16, 64, 128], help="requests, for parallel")
    add("--paths", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    add("--context", type=int, default=256, help="tokens in the cache of each request, for step")
    add("--tokens", type=int, default=512 if on_gpu else 256, help="tokens that each request writes")
    add("--turns", type=int, default=15)
    options = parser.parse_args()
    options.memory = MEMORY
    return options


if __name__ == "__main__":
    main()
