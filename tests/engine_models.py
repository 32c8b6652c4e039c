"""What the engine's tests share: writers of random structure, and traces that are forced through it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import torch
from torch import nn
from transformers import Qwen2Config

from mvtrain.engine import Engine
from mvtrain.engine.sampling import Sampler
from mvtrain.grammar import Block, Outline, Path, Trace, child_label
from tests.tiny import tiny_tags, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TAGS = tiny_tags()
EOS = TOKENIZER.eos_token_id


def random_trace(seed: int, max_depth: int = 3) -> Trace:
    """Texts and blocks in a row, blocks in paths, paths of different lengths, also empty ones."""
    rng = random.Random(seed)
    return Trace((_text(rng, 1), *_parts(rng, None, max_depth, 2), "end"))


def _text(rng: random.Random, shortest: int = 0) -> str:
    return "".join(rng.choice("abcdef") for _ in range(rng.randint(shortest, 8)))


def _parts(rng: random.Random, label: str | None, depth: int, max_blocks: int) -> list:
    parts: list = []
    for _ in range(rng.randint(1 if label is None else 0, max_blocks) if depth else 0):
        labels = [child_label(label, i) for i in range(1, rng.randint(1, 4) + 1)]
        outlines = tuple(Outline(inner, _text(rng)) for inner in labels)
        paths = tuple(Path(inner, (_text(rng), *_parts(rng, inner, depth - 1, 1), _text(rng))) for inner in labels)
        parts += [Block(outlines, paths, _text(rng)), _text(rng)]
    return parts


class WritesBlocks(Sampler):
    """Samples as it is told, but every branch starts with two blocks of two paths; paths end after some tokens."""

    def choose(self, logits_NV, branches):
        chosen = super().choose(logits_NV, branches)
        tokens = [self._structure(branch, token) for branch, (token, *_) in zip(branches, chosen, strict=True)]
        logprobs = logits_NV[:, : self.num_tokens].log_softmax(-1)
        return [(token, logprobs[row, token].item()) for row, token in enumerate(tokens)]

    def _structure(self, branch, token):
        opening = [TAGS.parallel, TAGS.goal, TAGS.outline, TAGS.end_outline, TAGS.outline, TAGS.end_outline]
        opening += [TAGS.end_goal]
        closing = [None, None, TAGS.end_conclusion, TAGS.end_parallel]
        wanted = [None] * 3 if branch.depth else []
        wanted += (opening + closing) * (2 - branch.depth) if branch.depth < 2 else []
        wanted += [None] * 4 + ([TAGS.end_path] if branch.depth else [])
        k = branch.num_sampled
        forced = wanted[k] if k < len(wanted) else None
        return token if forced is None else forced


class Noise(Sampler):
    """Random tokens, most of them tags, in an order that often makes sense."""

    def choose(self, logits_NV, branches):
        logprobs = logits_NV[:, : self.num_tokens].log_softmax(-1)
        tokens = [self._token(branch) for branch in branches]
        return [(token, logprobs[row, token].item()) for row, token in enumerate(tokens)]

    def _token(self, branch):
        request = branch.request
        rng = random.Random(repr((request.params.seed, request.sample, branch.lineage, branch.num_sampled)))
        follows = {
            "text": TAGS.parallel,
            "parallel": TAGS.goal,
            "goal": TAGS.outline,
            "conclusion": TAGS.end_conclusion,
        }
        likely = follows.get(branch.stage, TAGS.end_parallel)
        if branch.stage == "goal" and branch.tokens[-1] == TAGS.outline:
            likely = TAGS.end_goal
        kind = rng.random()
        if kind < 0.5:
            return likely
        if kind < 0.7:
            return rng.choice([*TAGS.as_tuple(), EOS])
        return rng.randrange(256) if kind < 0.95 else TAGS.end_path


class HollowModel(nn.Module):
    """Looks like a model to the engine, writes one layer of keys and values, and says nothing. For fuzzing."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Qwen2Config(
            vocab_size=len(TOKENIZER), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, max_position_embeddings=4096,
        )  # fmt: skip
        self.weight = nn.Parameter(torch.zeros(1, 1))
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def set_attn_implementation(self, name: str) -> None:
        self.config._attn_implementation = name

    def forward(self, input_ids, position_ids, use_cache, logits_to_keep, forward_pass):
        num_tokens = input_ids.shape[1]
        q_HND, k_NKD = torch.ones(2, num_tokens, 8), torch.ones(num_tokens, 1, 8)
        seen_NHD = forward_pass.attend(0, q_HND, k_NKD, k_NKD, None)
        assert torch.allclose(seen_NHD, torch.ones_like(seen_NHD), atol=1e-4), "attention saw a slot that holds nothing"
        return SimpleNamespace(logits=torch.zeros(1, len(logits_to_keep), len(TOKENIZER)))


def checked(engine: Engine, every: int = 1) -> Engine:
    """Assert the integrity of requests, scheduler and cache after every step, or every so many."""
    step = engine.step

    def checked_step():
        finished = step()
        if engine.num_passes % every == 0:
            engine.check_integrity()
            for request in engine.scheduler.running:
                check_slots(engine.cache, request)
        for request, _ in finished:
            request.check_integrity()
        return finished

    engine.step = checked_step
    return engine


def check_slots(cache, request) -> None:
    """Every token that went through the model has a slot, and no other has."""
    node, index = cache.slots_of(request.row)
    first = len(request.prefix.tokens) if request.prefix is not None else 0
    for branch in request.branches:
        wanted = range(first if branch is request.root else 0, branch.num_fed)
        assert index[node == branch.node].sort().values.tolist() == list(wanted)
