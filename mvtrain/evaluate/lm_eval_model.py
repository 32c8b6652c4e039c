"""The engine as a model of lm-eval (the Language Model Evaluation Harness), so that its tasks run on it.

    from lm_eval import simple_evaluate
    from mvtrain.evaluate.lm_eval_model import MultiverseLM

    simple_evaluate(model=MultiverseLM("runs/quickstart/export"), tasks=["gsm8k"], num_fewshot=0)

A context without a chat template gets ours, with the suffix of the mode, as in training. Of a generated response only
what follows the reasoning is handed over, since harness tasks look for an answer in all they get; a response whose
reasoning does not end within `max_tokens` is handed over empty, and so counts as wrong.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

try:
    from lm_eval.api.model import LM
except ImportError:
    raise ImportError("the adapter needs lm-eval: pip install 'mvtrain[lm-eval]'") from None

import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.verification import training_logprobs
from mvtrain.evaluate.grading_answers import after_reasoning
from mvtrain.evaluate.records import MODES, Mode
from mvtrain.layout import Layout, LayoutError
from mvtrain.prompt import PARALLEL_SUFFIX, SEQUENTIAL_SUFFIX


class MultiverseLM(LM):
    """Args:
    checkpoint: a folder, or an engine that is loaded already.
    mode: see `records.MODES`.
    max_tokens: limit on the critical path; the tasks' own limits are meant for answers without reasoning.
    temperature, top_p, seed: of tasks that do not give their own temperature. Equal requests get seeds that count up,
        so that repeats differ.
    device: a GPU where there is one, unless given.
    """

    def __init__(
        self,
        checkpoint: str | Engine,
        mode: Mode = "parallel",
        max_tokens: int = 4096,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        dtype: str | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; choose one of {', '.join(MODES)}")
        loaded = isinstance(checkpoint, Engine)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.engine = checkpoint if loaded else Engine.from_pretrained(checkpoint, dtype, device, None, batch_size)
        self.mode: Mode = mode
        self.params = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        self.seed = seed
        self._device = self.engine.model.device
        self._is_templated = False

    # Generation

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows the reasoning, up to the first of the task's stop strings."""
        asked: Counter[str] = Counter()
        prompts, params = [], []
        for request in requests:
            context, options = request.args
            prompts.append(self._prompt(context))
            params.append(self._sampling(options, self.seed + asked[context]))
            asked[context] += 1
        progress = None if disable_tqdm or not sys.stderr.isatty() else _tell
        completions = self.engine.generate(prompts, params, progress)
        answers = []
        for request, completion in zip(requests, completions, strict=True):
            answers.append(_answer(completion.text, request.args[1].get("until") or []))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def _prompt(self, context: str) -> str | list[int]:
        return self._encode(context) if self._is_templated else context

    def _sampling(self, options: dict[str, Any], seed: int) -> SamplingParams:
        own = {name: options[name] for name in ("temperature", "top_p", "top_k") if options.get(name) is not None}
        if options.get("do_sample") is False:
            own["temperature"] = 0.0
        modes = {"parallel": self.mode != "sequential", "ask_parallel": self.mode == "parallel"}
        return SamplingParams(**{**self.params, **own}, **modes, seed=seed)

    # Chat templates, where the harness is told to apply them

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The tokenizer's own template, with the suffix of the mode behind the last question."""
        suffix = PARALLEL_SUFFIX if self.mode == "parallel" else SEQUENTIAL_SUFFIX
        history = [dict(turn) for turn in chat_history]
        if history and history[-1]["role"] == "user":
            history[-1]["content"] += suffix
        self._is_templated = True
        return self.engine.tokenizer.apply_chat_template(
            history, add_generation_prompt=add_generation_prompt, continue_final_message=not add_generation_prompt,
            tokenize=False,
        )  # fmt: skip

    @property
    def tokenizer_name(self) -> str:
        return str(self.engine.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.engine.tokenizer.chat_template

    # Likelihoods, of the training forward pass

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(sum of log-probabilities, whether each token is the most probable one) of continuations."""
        found = []
        for request in requests:
            context, continuation = request.args
            found.append(self._score(self._encode(context), self._encode(continuation)))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Of whole texts. Raises ValueError where a text is longer than the model's context."""
        return [self._score([], self._encode(request.args[0]))[0] for request in requests]

    def _encode(self, text: str) -> list[int]:
        return self.engine.markup.encode(text)

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        engine = self.engine
        tokenizer = engine.tokenizer
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        ids = [*(context or [start]), *continuation]
        limit = engine.model.config.max_position_embeddings
        if len(ids) > limit:
            raise ValueError(f"a text of {len(ids)} tokens; the model has {limit} positions")
        if not continuation:
            return 0.0, True
        first = len(ids) - len(continuation)
        rows_N = torch.arange(first - 1, len(ids) - 1)
        logprobs_NV = training_logprobs(engine, ids, _layout(engine, ids), rows_N)
        tokens_N = torch.tensor(continuation, device=logprobs_NV.device)
        total = logprobs_NV.gather(1, tokens_N[:, None]).sum().item()
        return total, bool((logprobs_NV.argmax(-1) == tokens_N).all())


def _layout(engine: Engine, ids: list[int]) -> Layout:
    """That of training; text whose tags do not nest is read as causal text."""
    try:
        return Layout.from_ids(ids, engine.markup.tags, engine.scheme)
    except LayoutError:
        return Layout.from_ids([-1] * len(ids), engine.markup.tags, engine.scheme)


def _answer(response: str, until: list[str] | str) -> str:
    answer = (after_reasoning(response) or "").lstrip()
    for stop in [until] if isinstance(until, str) else until:
        if stop.strip():  # a blank line ends few-shot answers; here it stands behind the reasoning
            answer = answer.partition(stop)[0]
    return answer


def _tell(done: int, total: int, num_tokens: int) -> None:
    print(f"\r{done}/{total} answers, {num_tokens} tokens", end="\n" if done == total else "", file=sys.stderr)
