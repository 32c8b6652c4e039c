"""The engine: prompts in, completions out. docs/engine.md follows one request through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mvtrain.engine.completion import Completion, complete
from mvtrain.engine.events import Event, Watcher
from mvtrain.engine.markup import Markup
from mvtrain.engine.memory import num_pages
from mvtrain.engine.paged_cache import PagedCache
from mvtrain.engine.pages import PAGE_SIZE
from mvtrain.engine.prefix import Prefix
from mvtrain.engine.request import Request
from mvtrain.engine.row_cache import RowCache
from mvtrain.engine.runner import Runner, refuse_unsupported
from mvtrain.engine.sampling import Sampler, SamplingParams
from mvtrain.engine.scheduler import Scheduler
from mvtrain.layout import SCHEMES, Scheme
from mvtrain.manifest import read_manifest
from mvtrain.prompt import prompt_ids

DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}

Prompt = str | Sequence[int]
Progress = Callable[[int, int, int], None]
"""Called after every step with (finished requests, all requests, tokens generated so far)."""


class Engine:
    """Generates with an unmodified transformers model (Qwen2, Qwen3, Llama), paths in parallel, exactly as trained.

    Args:
        model: a causal language model; it is used in place, and runs with its own attention again between calls.
        tokenizer: with the twelve tags.
        scheme: positions and visibility the model was trained with.
        max_batch: requests that run at a time; the others wait.
        cache_tokens: tokens that the KV cache has room for; by default as many as half of the free memory holds.
        paged: keep the KV cache in pages, and attend with a kernel of its own; by default on a GPU.
        graphs: replay captured CUDA graphs while paths decode; by default on a GPU.
        sampler: chooses tokens; for tests.

    Raises:
        ValueError: the tokenizer lacks the tags, or the model has attention that the engine does not have.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        scheme: Scheme = "isolated",
        max_batch: int = 32,
        cache_tokens: int | None = None,
        paged: bool | None = None,
        graphs: bool | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        if scheme == "causal":
            raise ValueError("scheme 'causal' runs no paths; to see what its training does, give scheme 'isolated'")
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, expected at least 1")
        refuse_unsupported(model.config)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.scheme: Scheme = scheme
        self.markup = Markup(tokenizer, _eos_ids(model))
        self.sampler = sampler or Sampler(self.markup.num_tokens)
        on_gpu = model.device.type == "cuda"
        self.cache = _make_cache(model, cache_tokens, on_gpu if paged is None else paged)
        self.runner = Runner(model, self.cache, on_gpu if graphs is None else graphs)
        self.scheduler = Scheduler(self.cache, max_batch)
        self.num_passes = 0

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        dtype: str | torch.dtype | None = None,
        device: str = "cpu",
        scheme: Scheme | None = None,
        max_batch: int = 32,
        cache_tokens: int | None = None,
    ) -> Engine:
        """Load a converted or trained checkpoint.

        Args:
            dtype: a torch dtype, or one of fp32, fp64, bf16, fp16; that of the checkpoint by default.
            scheme: that of the checkpoint's `mvtrain.json` by default, "isolated" where it has none.

        Raises:
            ValueError: see `Engine`; or there is no checkpoint at `path`, or no such device.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if isinstance(dtype, str) and dtype not in DTYPES:
            raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
        _refuse_missing(path, device)
        tokenizer = AutoTokenizer.from_pretrained(path)
        manifest = read_manifest(path) or {"scheme": "isolated"}
        model = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES.get(dtype, dtype) or "auto").to(device)
        return cls(model, tokenizer, scheme or manifest["scheme"], max_batch, cache_tokens)

    @staticmethod
    def bytes_per_token(model: Any) -> int:
        """What one token takes in the KV cache: a key and a value in every layer."""
        config = model.config
        width = config.num_key_value_heads * _head_dim(config)
        return 2 * config.num_hidden_layers * width * model.dtype.itemsize

    # All at once

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Answer all prompts; completions come in the order of the prompts, `n` of them for each.

        Args:
            prompts: questions, which get the chat template and the suffix that asks for parallel steps (or for
                sequential ones, see `SamplingParams`); or lists of token ids, which are used as they are.
            params: for all prompts, or one for each. Equal prompts with equal parameters get equal answers: to
                sample several answers to a question, ask for `n`.

        Raises:
            ValueError: a prompt is empty or too long, or the number of parameters is not that of the prompts.
        """
        completions = dict(self.as_completed(prompts, params, progress))
        return [completions[index] for index in range(len(completions))]

    def as_completed(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Like `generate`, but gives every completion when it is there, with its index in what `generate` returns.

        Leaving the loop cancels the rest.
        """
        requests = self._requests(prompts, params)
        index = {request: k for k, request in enumerate(requests)}
        num_finished = 0
        for finished in self._run(requests):
            num_finished += len(finished)
            if progress:
                progress(num_finished, len(requests), sum(request.num_tokens for request in requests))
            yield from ((index[request], completion) for request, completion in finished.items())

    def stream(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Iterator[Event]:
        """Like `generate`, but tells what happens after every step; the last event of a request has its completion.

        An event's `request` counts the completions that `generate` would return. Leaving the loop cancels the rest.
        """
        requests = self._requests(prompts, params)
        watchers = {request: Watcher(request, index) for index, request in enumerate(requests)}
        for finished in self._run(requests):
            for request in [r for r in watchers if r.row is not None or r in finished]:
                yield from watchers[request].events(finished.get(request))
                if request in finished:
                    del watchers[request]

    def _run(self, requests: Sequence[Request]) -> Iterator[dict[Request, Completion]]:
        """Steps until all requests are through: what every step has finished. Leaves nothing behind."""
        for request in requests:
            self.scheduler.add(request)
        remaining = set(requests)
        try:
            while remaining:
                with self.runner.engine_attention():
                    finished = dict(self.step())
                remaining -= finished.keys()
                yield {request: completion for request, completion in finished.items() if request in requests}
        finally:
            if remaining:  # after an error or an interruption
                for request in remaining:
                    request.cancel()
                for _ in self.scheduler.collect_finished():
                    pass

    def encode(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """The token ids of a prompt. Raises ValueError where the engine cannot answer it."""
        ids = prompt_ids(self.tokenizer, prompt, params.asks_parallel) if isinstance(prompt, str) else list(prompt)
        num_rows, max_positions = self.model.config.vocab_size, self.model.config.max_position_embeddings
        wrong = next((id for id in ids if not 0 <= id < num_rows), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong}, expected 0 to {num_rows - 1}")
        if not 0 < len(ids) < max_positions:
            raise ValueError(f"a prompt of {len(ids)} tokens; expected 1 to {max_positions - 1}")
        if len(ids) >= self.cache.pages.capacity:
            raise ValueError(
                f"a prompt of {len(ids)} tokens does not fit into a KV cache of {self.cache.pages.capacity} tokens"
            )
        return ids

    # Step by step

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> list[Request]:
        """Put a prompt in line: `params.n` requests. `step` works on them, `cancel` ends them early.

        Raises ValueError like `generate`.
        """
        requests = self._requests([prompt], params)
        for request in requests:
            self.scheduler.add(request)
        return requests

    def cancel(self, request: Request) -> None:
        """End a request with what is there; the next step completes it, with `finish_reason` "cancelled"."""
        request.cancel()

    def step(self) -> list[tuple[Request, Completion]]:
        """One forward pass: every branch that is through with what it had to feed gets a token.

        Call it inside of `runner.engine_attention()`.
        """
        pieces = self.scheduler.choose()
        if pieces:
            self.num_passes += 1
            branches = [piece.samples for piece in pieces if piece.samples is not None]
            logits_NV = self.runner.run(pieces)
            choices = self.sampler.choose(logits_NV, branches) if branches else []
            for branch, choice in zip(branches, choices, strict=True):
                branch.request.advance(branch, *choice)  # may fork into paths, or join
        return [(request, complete(request)) for request in self.scheduler.collect_finished()]

    def check_integrity(self) -> None:
        """Assert what must hold between two steps. For tests."""
        self.cache.check_integrity()
        self.scheduler.check_integrity()
        for request in self.scheduler.running:
            request.check_integrity()

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise ValueError("generate takes a list of prompts; put the prompt into a list")
        params = params or SamplingParams()
        params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(params)} sampling parameters; give one or as many")
        requests = []
        for number, (prompt, p) in enumerate(zip(prompts, params, strict=True), start=1):
            try:
                requests += self._samples(self.encode(prompt, p), p)
            except ValueError as error:
                raise ValueError(f"prompt {number}: {error}") from None
        return requests

    def _samples(self, ids: Sequence[int], params: SamplingParams) -> list[Request]:
        """One request for each of `params.n` answers; the prompt of several is kept once."""
        prefix = Prefix(ids) if params.n > 1 and len(ids) > 1 else None
        max_positions = self.model.config.max_position_embeddings
        return [
            Request(ids, params, self.markup, self.scheme, max_positions, sample, prefix) for sample in range(params.n)
        ]


def _make_cache(model: Any, cache_tokens: int | None, paged: bool) -> Any:
    config = model.config
    heads = (config.num_attention_heads, config.num_key_value_heads)
    pages = num_pages(cache_tokens, Engine.bytes_per_token(model), PAGE_SIZE, model.device)
    shape = (config.num_hidden_layers, heads, _head_dim(config), model.dtype, pages)
    return PagedCache(*shape, model.device) if paged else RowCache(*shape)


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _eos_ids(model: Any) -> tuple[int, ...]:
    """generation_config's end-of-text ids: chat models often have one that the tokenizer does not name."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if ids is None else (ids,) if isinstance(ids, int) else tuple(ids)


def _refuse_missing(path: str, device: str) -> None:
    if not (Path(path) / "config.json").is_file():
        raise ValueError(f"no checkpoint in {path}: expected a folder that `mvtrain convert` or a training run wrote")
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"unknown device {device!r}; give cpu or cuda") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device}: this PyTorch ({torch.__version__}) finds no CUDA device; give cpu")
