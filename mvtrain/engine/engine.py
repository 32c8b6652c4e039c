"""The engine: prompts in, completions out. docs/engine.md follows one request through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mvtrain.engine.completion import Completion, complete
from mvtrain.engine.markup import Markup
from mvtrain.engine.request import Request
from mvtrain.engine.runner import Runner
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
        sampler: Sampler | None = None,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"unknown scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}, expected at least 1")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.scheme: Scheme = scheme
        self.markup = Markup(tokenizer, _eos_ids(model))
        self.sampler = sampler or Sampler(self.markup.num_tokens)
        self.runner = Runner(model)
        self.scheduler = Scheduler(max_batch)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        dtype: str | torch.dtype | None = None,
        device: str = "cpu",
        scheme: Scheme | None = None,
        max_batch: int = 32,
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
        return cls(model, tokenizer, scheme or manifest["scheme"], max_batch)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """Answer all prompts; completions come in the order of the prompts.

        Args:
            prompts: questions, which get the chat template and the suffix that asks for parallel steps (or for
                sequential ones, with `parallel=False`); or lists of token ids, which are used as they are.
            params: for all prompts, or one for each. Equal prompts with equal parameters get equal answers: to
                sample several answers to a question, give each its own seed.

        Raises:
            ValueError: a prompt is empty or too long, or the number of parameters is not that of the prompts.
        """
        requests = self._requests(prompts, params)
        for request in requests:
            self.scheduler.add(request)
        completions: dict[int, Completion] = {}
        try:
            with self.runner.engine_attention():
                while self.scheduler.has_work:
                    completions.update((id(request), completion) for request, completion in self.step())
                    if progress:
                        num_tokens = sum(request.num_tokens for request in requests)
                        progress(len(completions), len(requests), num_tokens)
        finally:
            for row in self.scheduler.clear():  # only after an error or an interruption
                self.runner.cache.release(row)
        return [completions[id(request)] for request in requests]

    def step(self) -> list[tuple[Request, Completion]]:
        """One forward pass: every branch that is through with what it had to feed gets a token."""
        chosen = self.scheduler.choose()
        branches = [item.branch for item in chosen if item.samples]
        logits_NV = self.runner.run(chosen)
        for request in {id(item.branch.request): item.branch.request for item in chosen}.values():
            request.num_passes += 1
        for branch, (token, logprob) in zip(branches, self.sampler.choose(logits_NV, branches), strict=True):
            branch.request.advance(branch, token, logprob)  # may fork into paths, or join
        return [self._retire(row, request) for row, request in self.scheduler.collect_finished()]

    def _retire(self, row: int, request: Request) -> tuple[Request, Completion]:
        self.runner.cache.release(row)
        return request, complete(request)

    def _requests(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        if isinstance(prompts, str):
            raise ValueError("generate takes a list of prompts; put the prompt into a list")
        params = params or SamplingParams()
        params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(params)} sampling parameters; give one or as many")
        max_positions = self.model.config.max_position_embeddings
        requests = []
        for row, (prompt, p) in enumerate(zip(prompts, params, strict=True), start=1):
            ids = prompt_ids(self.tokenizer, prompt, p.parallel) if isinstance(prompt, str) else prompt
            try:
                self._check_ids(ids)
                requests.append(Request(ids, p, self.markup, self.scheme, max_positions))
            except ValueError as error:
                raise ValueError(f"prompt {row}: {error}") from None
        return requests

    def _check_ids(self, ids: Sequence[int]) -> None:
        num_rows = self.model.config.vocab_size
        wrong = next((id for id in ids if not 0 <= id < num_rows), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong}, expected 0 to {num_rows - 1}")


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
