"""Thousands of tokens in nested paths, batches and pre-emptions, against stock attention under a mask made here.

The mask comes from who is whose path, and from nothing of the layout: a token sees what stands before it in the text,
unless a block put the two on different paths.
"""

from __future__ import annotations

import pytest
import torch

from mvtrain.engine import Engine, SamplingParams
from mvtrain.engine.sampling import Sampler, at_least_float32
from tests.engine_models import TOKENIZER, WritesBlocks
from tests.tiny import FAMILIES, tiny_model

NUM_REQUESTS = 12


def separated(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether a block put two branches on different paths: the first difference of lineages is in a path's number."""
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k % 2 == 1
    return False


def mask_of(completion) -> torch.Tensor:
    """BoolTensor (T, T), True = may attend."""
    lineages = [()] * len(completion.prompt_ids)
    lineages += [completion.branches[k].lineage for k in completion.token_branches]
    kinds = sorted(set(lineages))
    apart = torch.tensor([[separated(a, b) for b in kinds] for a in kinds])
    kind_T = torch.tensor([kinds.index(lineage) for lineage in lineages])
    return torch.ones(len(lineages), len(lineages)).tril().bool() & ~apart[kind_T][:, kind_T]


class _Recorder(WritesBlocks):
    """Keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__(len(TOKENIZER))
        self.seen: dict = {}

    def choose(self, logits_NV, branches):
        logprobs_NV = at_least_float32(logits_NV[:, : self.num_tokens]).log_softmax(-1)
        chosen = super().choose(logits_NV, branches)
        for branch, row_V in zip(branches, logprobs_NV, strict=True):
            self.seen.setdefault(branch.request, []).append((branch, len(branch.tokens), row_V))
        return chosen


def differences(family: str, dtype: torch.dtype, wrong: bool = False) -> tuple[list[torch.Tensor], int, Engine]:
    """Per request (N, V) differences of log-probabilities, the number of other most probable tokens, and the engine."""
    model = tiny_model(family, dtype=dtype)
    sampler = _Recorder()
    engine = Engine(model, TOKENIZER, cache_tokens=1600, max_batch=8, sampler=sampler)
    params = [SamplingParams(max_tokens=110, temperature=t, seed=s) for s, t in enumerate([0, 1.0] * 6)]
    prompts = [[(3 * k + i) % 200 for i in range(1 + 25 * k)] for k in range(NUM_REQUESTS)]
    requests = [engine.add(prompt, p)[0] for prompt, p in zip(prompts, params, strict=True)]
    completions: dict = {}
    with engine.runner.engine_attention():
        while len(completions) < len(requests):
            completions.update(engine.step())
    assert engine.scheduler.num_preemptions > 0 and model.config._attn_implementation == "sdpa"
    result, num_others = [], 0
    for request in requests:
        completion = completions[request]
        assert len(completion.branches) > 4
        mask_TT = mask_of(completion)
        if wrong:
            mask_TT = torch.ones_like(mask_TT).tril()
        ids, start = completion.prompt_ids + completion.token_ids, len(completion.prompt_ids)
        positions = torch.tensor([*range(start), *completion.position_ids])
        with torch.no_grad():
            logits_TV = model(
                torch.tensor([ids]), position_ids=positions[None], attention_mask=mask_TT[None, None], use_cache=False
            ).logits[0]
        full_TV = at_least_float32(logits_TV[:, : len(TOKENIZER)]).log_softmax(-1)
        place = {at: start + k for k, at in enumerate(request.root.in_text_order())}
        rows = [
            place[branch, offset - 1] if (branch, offset - 1) in place else start - 1
            for branch, offset, _ in sampler.seen[request]
        ]
        ours_NV = torch.stack([row_V for *_, row_V in sampler.seen[request]])
        result.append((ours_NV - full_TV[rows]).abs())
        num_others += int((ours_NV.argmax(-1) != full_TV[rows].argmax(-1)).sum())
    return result, num_others, engine


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_agrees_to_rounding(family):
    found, num_others, _ = differences(family, torch.float64)
    assert sum(map(len, found)) > 1500
    assert max(float(difference.max()) for difference in found) < 1e-10 and num_others == 0


def test_float32_agrees_and_changes_no_choice():
    found, num_others, _ = differences("qwen2", torch.float32)
    assert max(float(difference.max()) for difference in found) < 1e-4 and num_others == 0


def test_a_mask_without_paths_is_far_off():
    found, _, _ = differences("qwen2", torch.float64, wrong=True)
    assert max(float(difference.max()) for difference in found) > 1


def test_samplers_see_every_branch_once_a_pass():
    """The recorder above would hide a branch that samples twice: there would be two rows for one place."""
    _, _, engine = differences("llama", torch.float32)
    places = [(branch, offset) for rows in engine.sampler.seen.values() for branch, offset, _ in rows]
    assert len(places) == len(set(places)) and isinstance(engine.sampler, Sampler)


def test_half_precision_agrees_on_average():
    """The tokens that were sampled; the tails of a distribution are mostly rounding."""
    found, _, engine = differences("qwen2", torch.bfloat16)
    sampled = [
        float(difference_V[branch.tokens[offset]])
        for rows, difference_NV in zip(engine.sampler.seen.values(), found, strict=True)
        for (branch, offset, _), difference_V in zip(rows, difference_NV, strict=True)
        if offset < len(branch.tokens)
    ]
    assert len(sampled) > 1500 and sum(sampled) / len(sampled) < 0.02
