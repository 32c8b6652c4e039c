"""The engine held against the training forward pass: the same tokens, one full pass, the same log-probabilities?

Shape suffixes: T tokens of prompt and answer, N tokens that were sampled, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from mvtrain.attention import register
from mvtrain.engine.branches import Branch
from mvtrain.engine.completion import complete
from mvtrain.engine.engine import Engine
from mvtrain.engine.float64 import float64_norms
from mvtrain.engine.request import Request
from mvtrain.engine.sampling import Sampler, SamplingParams, at_least_float32
from mvtrain.engine.script import ScriptedSampler, write_script
from mvtrain.grammar import Trace, walk
from mvtrain.layout import Layout, TagIds

LIMITS = {
    torch.float64: ("max", 1e-10),
    torch.float32: ("max", 1e-3),
    torch.bfloat16: ("sampled", 0.05),
    torch.float16: ("sampled", 0.01),
}
"""Differences of log-probabilities that count as rounding. A 30-layer model in float32 comes to 1e-4 at most over the
whole vocabulary, a wrong mask or position to 1 and more. In half precision the tails of a distribution are mostly
rounding; there the average over the tokens that were sampled is limited."""
NEAR_TIE = {torch.float64: 4e-10, torch.float32: 4e-3, torch.bfloat16: 1.0, torch.float16: 0.25}
"""How much less probable the engine's most probable token may be in the full pass."""
UNLIKELY = 2
"""How much more of it a scripted trace may have in half precision: the model would have written something else, and the
log-probability of an unlikely token is rounded more."""


Record = tuple[Branch, int, torch.Tensor]
"""A branch, the offset of its last token, and the log-probabilities (V,) of the next one."""


@dataclass
class Comparison:
    """One answer, engine against full pass."""

    name: str
    dtype: str
    num_sampled: int
    """Positions that were compared, each over the whole vocabulary."""
    num_blocks: int
    num_paths: int
    max_difference: float
    mean_difference: float
    sampled_difference: float
    """The average over the tokens that were sampled, without the rest of the vocabulary."""
    num_argmax_differences: int
    """Positions whose most probable token differs by more than rounding could explain."""
    num_wrong_positions: int
    """Tokens whose position id is not the layout's."""
    limited: str
    """"max" or "sampled": which difference has the threshold."""
    threshold: float
    max_difference_to_training: float | None = None
    """Scheme "original" only: against the training mask with the leak that decoding in parallel cannot have."""

    @property
    def ok(self) -> bool:
        limited = self.max_difference if self.limited == "max" else self.sampled_difference
        return limited <= self.threshold and self.num_argmax_differences == 0 and self.num_wrong_positions == 0


class RecordingSampler(Sampler):
    """Samples like another sampler and keeps the log-probabilities that it was shown, and after which token."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__(sampler.num_tokens)
        self.sampler = sampler
        self.records: dict[Request, list[Record]] = {}

    def choose(self, logits_NV: torch.Tensor, branches: Sequence[Branch]) -> list[tuple[int, float]]:
        logprobs_NV = at_least_float32(logits_NV[:, : self.num_tokens]).log_softmax(-1)
        for branch, logprobs_V in zip(branches, logprobs_NV, strict=True):
            self.records.setdefault(branch.request, []).append((branch, len(branch.tokens) - 1, logprobs_V))
        return self.sampler.choose(logits_NV, branches)


def verify_generation(engine: Engine, prompt: Any, params: SamplingParams, name: str = "generated") -> Comparison:
    """Let the model answer, and compare."""
    return _verify(engine, prompt, params, engine.sampler, name)


def verify_trace(engine: Engine, prompt: Any, trace: Trace, name: str = "scripted") -> Comparison:
    """Force `trace` through the engine, token by token, and compare.

    Raises ValueError where the engine did not fork once per block of the trace: nothing would have been verified.
    """
    script = write_script(trace, engine.tokenizer)
    sampler = ScriptedSampler(script, engine.markup.num_tokens, engine.tokenizer.eos_token_id)
    longest = sum(map(len, script.values())) + 16 * len(script)
    params = SamplingParams(max_tokens=longest, max_total_tokens=2 * longest)
    comparison = _verify(engine, prompt, params, sampler, name, scripted=True)
    num_blocks = sum(1 for _ in walk(trace))
    if comparison.num_blocks != num_blocks:
        raise ValueError(
            f"the scripted trace has {num_blocks} blocks, but the engine forked {comparison.num_blocks}; "
            f"is there room for it in the model's {engine.model.config.max_position_embeddings} positions?"
        )
    return comparison


def _verify(
    engine: Engine, prompt: Any, params: SamplingParams, sampler: Sampler, name: str, scripted: bool = False
) -> Comparison:
    recorder = RecordingSampler(sampler)
    before, engine.sampler = engine.sampler, recorder
    exact = engine.model.dtype == torch.float64
    with float64_norms(engine.model) if exact else nullcontext():
        try:
            engine.generate([prompt], params)
        finally:
            engine.sampler = before
        ((request, records),) = recorder.records.items()
        return compare(engine, request, records, name, scripted)


def compare(
    engine: Engine, request: Request, records: list[Record], name: str = "", scripted: bool = False
) -> Comparison:
    """Hold the recorded log-probabilities of a finished request against one full pass."""
    completion = complete(request)
    prompt_length = len(completion.prompt_ids)
    place = {at: prompt_length + k for k, at in enumerate(request.root.in_text_order())}
    place[request.root, -1] = prompt_length - 1
    rows_N = torch.tensor([place[branch, offset] for branch, offset, _ in records])
    ours_NV = torch.stack([logprobs_V for _, _, logprobs_V in records])
    ids = [*completion.prompt_ids, *completion.token_ids]
    layout = completion.layout
    training_NV = training_logprobs(engine, ids, layout, rows_N)
    reference_NV, to_training = training_NV, None
    if layout.scheme == "original":
        mask_TT = layout.dense_mask() & ~separator_leak(completion.layout_ids, engine.markup.tags)
        reference_NV = masked_logprobs(engine, ids, layout, mask_TT, rows_N)
        to_training = (ours_NV - training_NV).abs().max().item()
    difference_NV = (ours_NV - reference_NV).abs()
    limited, threshold = LIMITS[engine.model.dtype]
    positions_T = layout.position_ids[prompt_length:]
    return Comparison(
        name=name,
        dtype=str(engine.model.dtype).removeprefix("torch."),
        num_sampled=len(records),
        num_blocks=sum(branch.num_blocks for branch in request.branches),
        num_paths=len(request.branches) - 1,
        max_difference=difference_NV.max().item(),
        mean_difference=difference_NV.mean().item(),
        sampled_difference=_of_sampled(difference_NV, records).mean().item(),
        num_argmax_differences=_argmax_differences(ours_NV, reference_NV, NEAR_TIE[engine.model.dtype]),
        num_wrong_positions=int((positions_T != torch.tensor(completion.position_ids)).sum()),
        limited=limited,
        threshold=threshold * (UNLIKELY if scripted and limited == "sampled" else 1),
        max_difference_to_training=to_training,
    )


def _of_sampled(difference_NV: torch.Tensor, records: list[Record]) -> torch.Tensor:
    """(N',) the entries of the tokens that came next. A branch that was ended at once has none."""
    followed = [(n, branch.tokens[at + 1]) for n, (branch, at, _) in enumerate(records) if at + 1 < len(branch.tokens)]
    rows, tokens = zip(*followed, strict=True)
    return difference_NV[list(rows), list(tokens)]


def _argmax_differences(ours_NV: torch.Tensor, reference_NV: torch.Tensor, near: float) -> int:
    """A near tie may fall either way: a choice counts as different if the reference gives it clearly less."""
    best_N = reference_NV.amax(-1)
    chosen_N = reference_NV.gather(-1, ours_NV.argmax(-1, keepdim=True))[:, 0]
    return int((best_N - chosen_N > near).sum())


def training_logprobs(engine: Engine, ids: list[int], layout: Layout, rows_N: torch.Tensor) -> torch.Tensor:
    """(N, V) log-probabilities after tokens `rows_N`, from one pass with training's attention."""
    with _attention(engine.model, register()):
        return _logprobs(engine, ids, layout.position_ids, rows_N, layout=layout)


def masked_logprobs(
    engine: Engine, ids: list[int], layout: Layout, mask_TT: torch.Tensor, rows_N: torch.Tensor
) -> torch.Tensor:
    """The same from one pass with stock attention under a dense mask, True = may attend."""
    with _attention(engine.model, "sdpa"):
        return _logprobs(
            engine, ids, layout.position_ids, rows_N, attention_mask=mask_TT[None, None].to(engine.model.device)
        )


@torch.no_grad()
def _logprobs(
    engine: Engine, ids: list[int], positions_T: torch.Tensor, rows_N: torch.Tensor, **kwargs: Any
) -> torch.Tensor:
    device = engine.model.device
    output = engine.model(
        input_ids=torch.tensor([ids], device=device),
        position_ids=positions_T[None].to(device),
        use_cache=False,
        logits_to_keep=rows_N.to(device),
        **kwargs,
    )
    return at_least_float32(output.logits[0, :, : engine.markup.num_tokens]).log_softmax(-1)


@contextmanager
def _attention(model: Any, name: str) -> Iterator[Callable[..., Any]]:
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def separator_leak(ids: Sequence[int], tags: TagIds) -> torch.Tensor:
    """BoolTensor (T, T): the pairs that scheme "original" lets attend and that decoding in parallel cannot have.

    They are (token of a path, separator after an earlier sibling): the separator is not there yet when the path is
    written. Plain tags and the prompt's have to be masked out of `ids`.
    """
    leak_TT = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    blocks: list[list[tuple[int, int]]] = []  # of every open block: the gaps before its second, third, ... path
    starts: list[int] = []  # of every open path
    ends: list[int | None] = []  # of every open block: one past its last </Path>
    for index, id in enumerate(ids):
        if id == tags.parallel:
            blocks.append([])
            ends.append(None)
        elif id == tags.end_parallel:
            blocks.pop()
            ends.pop()
        elif id == tags.path:
            starts.append(index)
            if ends[-1] is not None:
                blocks[-1].append((ends[-1], index))
        elif id == tags.end_path:
            start, ends[-1] = starts.pop(), index + 1
            for gap_start, gap_end in blocks[-1]:
                leak_TT[start : index + 1, gap_start:gap_end] = True
    return leak_TT
