"""How tokens are chosen.

The noise of a token depends on the request's seed, the lineage of its branch and the number of tokens the branch has
sampled, and on nothing else. So neither the batch around a request nor the order of its paths changes what it says.

Shape suffixes: N branches that need a token, V vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mvtrain.engine.branches import Branch


@dataclass(frozen=True)
class SamplingParams:
    """How one request is generated. Raises ValueError for a value out of range."""

    temperature: float = 0.0
    """0 takes the most probable token."""
    top_p: float = 1.0
    """Sample from the most probable tokens that together have this probability."""
    top_k: int = 0
    """Sample from this many most probable tokens; 0 for all."""
    max_tokens: int = 1024
    """Length of the critical path, in tokens, the prompt not counted. Tags that close what is open come on top."""
    max_total_tokens: int | None = None
    """Tokens of all paths together; None for eight times `max_tokens`."""
    max_paths: int = 64
    """A goal with more outlines than this is not forked: its branch goes on sequentially."""
    max_depth: int = 4
    """How deep blocks may nest; a block that is deeper is not forked."""
    seed: int = 0
    """Two requests with the same prompt, parameters and seed get the same answer."""
    parallel: bool = True
    """False: nothing is forked, tags are tokens like all others, and a question gets the sequential suffix."""

    def __post_init__(self) -> None:
        rules = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "max_total_tokens": (self.max_total_tokens is None or self.max_total_tokens >= 1, "at least 1"),
            "max_paths": (self.max_paths >= 1, "at least 1"),
            "max_depth": (self.max_depth >= 0, "at least 0"),
        }
        wrong = [f"{name} = {getattr(self, name)}, expected {rule}" for name, (good, rule) in rules.items() if not good]
        if wrong:
            raise ValueError("sampling parameters: " + "; ".join(wrong))

    @property
    def total_limit(self) -> int:
        return 8 * self.max_tokens if self.max_total_tokens is None else self.max_total_tokens


class Sampler:
    """Chooses one token per branch. `num_tokens` cuts off the padding rows of the embedding: they are never chosen."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def choose(self, logits_NV: torch.Tensor, branches: Sequence[Branch]) -> list[tuple[int, float]]:
        """(token, its log-probability at temperature 1) for every branch."""
        logits_NV = at_least_float32(logits_NV[:, : self.num_tokens])
        tokens_N = logits_NV.argmax(-1)
        for params, rows in _group_by_distribution(branches).items():
            noise_N = torch.tensor([uniform_noise(branches[row]) for row in rows], dtype=torch.float64)
            tokens_N[rows] = _sample(logits_NV[rows], params, noise_N.to(logits_NV.device))
        logprobs_N = logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
        return list(zip(tokens_N.tolist(), logprobs_N.tolist(), strict=True))


def at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def uniform_noise(branch: Branch) -> float:
    """A number in [0, 1) that is a pure function of (seed, lineage, index in the branch)."""
    words = (branch.request.params.seed, branch.num_sampled, *branch.lineage)
    digest = hashlib.blake2b(",".join(map(str, words)).encode(), digest_size=8).digest()
    return (struct.unpack("<Q", digest)[0] >> 11) / (1 << 53)


def _group_by_distribution(branches: Sequence[Branch]) -> dict[tuple[float, float, int], list[int]]:
    """(temperature, top_p, top_k) -> the branches that sample with it. Greedy branches are in no group."""
    groups: dict[tuple[float, float, int], list[int]] = {}
    for row, branch in enumerate(branches):
        params = branch.request.params
        if params.temperature > 0:
            groups.setdefault((params.temperature, params.top_p, params.top_k), []).append(row)
    return groups


def _sample(logits_NV: torch.Tensor, params: tuple[float, float, int], noise_N: torch.Tensor) -> torch.Tensor:
    """Invert the cumulative distribution at `noise_N`, which is uniform in [0, 1). Returns LongTensor (N,)."""
    temperature, top_p, top_k = params
    # The largest logit goes first, so that a tiny temperature cannot make infinities.
    logits_NV = (logits_NV.double() - logits_NV.amax(-1, keepdim=True)) / temperature
    probs_NV, order_NV = logits_NV.softmax(-1), None
    if top_p < 1 or top_k:
        probs_NV, order_NV = torch.sort(probs_NV, dim=-1, descending=True, stable=True)
        outside_NV = probs_NV.cumsum(-1) - probs_NV >= top_p
        if top_k:
            outside_NV[:, top_k:] = True
        probs_NV = probs_NV.masked_fill(outside_NV, 0.0)
    cumulative_NV = probs_NV.cumsum(-1)
    target_N1 = (noise_N * cumulative_NV[:, -1])[:, None]
    # Rounding may put the target on the very end; the last token with a probability is then the right one.
    last_N1 = (probs_NV > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    chosen_N1 = torch.minimum(torch.searchsorted(cumulative_NV, target_N1, right=True), last_N1)
    return (chosen_N1 if order_NV is None else order_NV.gather(1, chosen_N1))[:, 0]
