"""How tokens are chosen.

The noise of a token depends on the request's seed, the lineage of its branch and the number of tokens the branch has
sampled, and on nothing else. So neither the batch around a request nor the order of its paths changes what it says.

Shape suffixes: N branches that need a token, V vocabulary, C candidates.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from mvtrain.engine.filters import kept_tokens, penalised

if TYPE_CHECKING:
    from mvtrain.engine.branches import Branch


@dataclass(frozen=True)
class SamplingParams:
    """How one request is generated. Raises ValueError for a value out of range."""

    temperature: float = 0.0
    """0 takes the most probable token."""
    top_k: int = 0
    """Sample from this many most probable tokens; 0 for all. A tie at the last of them is kept."""
    top_p: float = 1.0
    """Sample from the most probable tokens that together have this probability."""
    min_p: float = 0.0
    """Sample from tokens with at least this share of the most probable token's probability."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that the branch can see are made less probable (Keskar et al. 2019), greedy choices included."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, without being part of it. In a path they end the path, as end of text does."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that count as end of text."""
    n: int = 1
    """Answers to each prompt. Their noise differs, and the prompt goes through the model once for all of them."""
    max_tokens: int = 1024
    """Length of the critical path, in tokens, the prompt not counted. Tags that close what is open come on top."""
    max_total_tokens: int | None = None
    """Tokens of all paths together; None for eight times `max_tokens`."""
    max_path_tokens: int | None = None
    """Length of one path, its opening and the critical path of its blocks included; None for no limit of its own."""
    max_paths: int = 64
    """A goal with more outlines than this is not forked: its branch goes on sequentially."""
    max_depth: int = 4
    """How deep blocks may nest; a block that is deeper is not forked."""
    answer_tokens: int = 0
    """0: an answer that reaches a limit ends there. Above, what is open is then closed, `answer_prefix` is put in, and
    the model has so many tokens more to give its answer (budget forcing, Muennighoff et al. 2025). Where the reasoning
    is over, the answer that has begun goes on."""
    answer_prefix: str = "Answer: \\boxed{"
    num_logprobs: int = 0
    """How many of the most probable tokens are reported, with log-probabilities, for every sampled token."""
    seed: int = 0
    """Two requests with the same prompt, parameters and seed get the same answer."""
    parallel: bool = True
    """False: nothing is forked, and tags are tokens like all others."""
    ask_parallel: bool | None = None
    """Whether a question gets the suffix that asks for parallel steps, or the sequential one; None: as `parallel`."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        rules = {
            "temperature": (0 <= self.temperature < float("inf"), "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "above 0"),
            "stop": (all(isinstance(stop, str) and stop for stop in self.stop), "strings of at least one character"),
            "n": (self.n >= 1, "at least 1"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "max_total_tokens": (self.max_total_tokens is None or self.max_total_tokens >= 1, "at least 1"),
            "max_path_tokens": (self.max_path_tokens is None or self.max_path_tokens >= 1, "at least 1"),
            "answer_tokens": (self.answer_tokens >= 0, "at least 0"),
            "max_paths": (self.max_paths >= 1, "at least 1"),
            "max_depth": (0 <= self.max_depth <= 64, "0 to 64"),
            "num_logprobs": (self.num_logprobs >= 0, "at least 0"),
        }
        wrong = [f"{name} = {getattr(self, name)}, expected {rule}" for name, (good, rule) in rules.items() if not good]
        if wrong:
            raise ValueError("sampling parameters: " + "; ".join(wrong))

    @property
    def asks_parallel(self) -> bool:
        return self.parallel if self.ask_parallel is None else self.ask_parallel

    @property
    def total_limit(self) -> int:
        return 8 * self.max_tokens if self.max_total_tokens is None else self.max_total_tokens


class Choice(NamedTuple):
    token: int
    logprob: float
    """Of the token under the model: at temperature 1, nothing left out and nothing penalised."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """(token, log-probability) of the most probable tokens, if asked for."""


class Sampler:
    """Chooses one token per branch. `num_tokens` cuts off the padding rows of the embedding: they are never chosen."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def choose(self, logits_NV: torch.Tensor, branches: Sequence[Branch]) -> list[Choice]:
        """The next token of every branch, from the logits (N, V) after its last one."""
        logits_NV = at_least_float32(logits_NV[:, : self.num_tokens])
        params = [branch.request.params for branch in branches]
        scores_NV = self._penalise(logits_NV, branches)
        tokens_N = scores_NV.argmax(-1)
        rows = [row for row, p in enumerate(params) if p.temperature > 0]
        if rows:
            noise_N = torch.tensor([uniform_noise(branches[row]) for row in rows], dtype=torch.float64)
            chosen = rows if len(rows) < len(params) else slice(None)
            tokens_N[chosen] = _sample(scores_NV[chosen], [params[row] for row in rows], noise_N.to(logits_NV.device))
        total_N1 = logits_NV.logsumexp(-1, keepdim=True)
        logprobs_N = (logits_NV.gather(1, tokens_N[:, None]) - total_N1)[:, 0]
        tops = self._top(logits_NV, total_N1, params)
        return [Choice(*choice) for choice in zip(tokens_N.tolist(), logprobs_N.tolist(), tops, strict=True)]

    def _penalise(self, logits_NV: torch.Tensor, branches: Sequence[Branch]) -> torch.Tensor:
        rows = [row for row, branch in enumerate(branches) if branch.request.params.repetition_penalty != 1]
        if not rows:
            return logits_NV
        logits_NV = logits_NV.clone()
        for row in rows:
            branch = branches[row]
            seen = torch.tensor(sorted(visible_tokens(branch)), device=logits_NV.device)
            penalty = branch.request.params.repetition_penalty
            logits_NV[row] = penalised(logits_NV[row], seen[seen < self.num_tokens], penalty)
        return logits_NV

    def _top(
        self, logits_NV: torch.Tensor, total_N1: torch.Tensor, params: Sequence[SamplingParams]
    ) -> list[tuple[tuple[int, float], ...]]:
        most = min(max(p.num_logprobs for p in params), self.num_tokens) if params else 0
        if not most:
            return [()] * len(params)
        values_NC, ids_NC = logits_NV.topk(most)
        rows = zip(ids_NC.tolist(), (values_NC - total_N1).tolist(), params, strict=True)
        return [tuple(zip(ids, values, strict=True))[: p.num_logprobs] for ids, values, p in rows]


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def uniform_noise(branch: Branch) -> float:
    """A number in [0, 1) that is a pure function of (seed, sample, lineage, index in the branch)."""
    request = branch.request
    words = (request.params.seed, branch.num_sampled, *branch.lineage)
    text = ",".join(map(str, words)) + (f"/{request.sample}" if request.sample else "")
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (struct.unpack("<Q", digest)[0] >> 11) / (1 << 53)


def visible_tokens(branch: Branch) -> set[int]:
    """Every token that the next one of `branch` sees: prompt, texts around it, its own, and joined paths."""
    seen = set(branch.request.prompt).union(branch.tokens)
    nodes = {other.node: other for other in branch.request.branches}
    for node in branch.limits.nonzero()[0].tolist():
        other = nodes[node]
        seen.update(other.tokens[: max(0, int(branch.limits[node]) - other.first_index)])
    return seen


def _sample(scores_NV: torch.Tensor, params: Sequence[SamplingParams], noise_N: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at `noise_N`, which is uniform in [0, 1). Returns LongTensor (N,)."""
    temperature_N1 = torch.tensor([[p.temperature] for p in params], dtype=torch.float64, device=scores_NV.device)
    # The largest goes first, so that a tiny temperature cannot make infinities.
    scores_NV = (scores_NV.double() - scores_NV.amax(-1, keepdim=True)) / temperature_N1
    kept_NV = kept_tokens(scores_NV, params)
    if kept_NV is not None:
        scores_NV = scores_NV.masked_fill(~kept_NV, float("-inf"))
    cumulative_NV = scores_NV.softmax(-1).cumsum(-1)
    target_N1 = (noise_N * cumulative_NV[:, -1])[:, None]
    chosen_N1 = torch.searchsorted(cumulative_NV, target_N1, right=True)
    # Rounding may put the target on the very end; the last token with a probability is then the right one.
    last_N1 = torch.searchsorted(cumulative_NV, cumulative_NV[:, -1:].contiguous())
    chosen_N = torch.minimum(chosen_N1, last_N1)[:, 0]
    return chosen_N.clamp(max=scores_NV.shape[1] - 1)  # past the end where scores are no numbers; the request ends then
