"""Traces that are forced through the engine, to exercise forks and joins with a model that writes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mvtrain.engine.branches import Branch
from mvtrain.engine.sampling import Sampler, at_least_float32
from mvtrain.grammar import Block, Think, Trace

Script = dict[tuple[int, ...], list[int]]
"""Lineage -> the tokens that the branch samples, in order. What the engine forces is not in it."""


def write_script(trace: Trace, tokenizer: Any) -> Script:
    """What each branch has to sample so that the engine writes `trace`; the root ends with the end of text."""
    texts: dict[tuple[int, ...], list[str]] = {(): []}
    _write(trace.parts, (), texts)
    script = {
        lineage: [id for text in parts for id in tokenizer(text, add_special_tokens=False)["input_ids"]]
        for lineage, parts in texts.items()
    }
    script[()].append(tokenizer.eos_token_id)
    return script


def _write(parts: Sequence[Any], lineage: tuple[int, ...], texts: dict[tuple[int, ...], list[str]]) -> None:
    num_blocks = 0
    for part in _flatten(parts):
        if isinstance(part, str):
            texts[lineage].append(f" {part}\n")
            continue
        outlines = "\n".join(f"<Outline>\n{o.label}: {o.text}\n</Outline>" for o in part.outlines)
        texts[lineage].append(f"<Parallel>\n<Goal>\n{outlines}\n</Goal>")
        for index, path in enumerate(part.paths):
            inside = (*lineage, num_blocks, index)
            texts[inside] = []
            _write(path.parts, inside, texts)
            texts[inside].append("</Path>")
        texts[lineage].append(f"\n{part.conclusion}\n</Conclusion>\n</Parallel>\n")
        num_blocks += 1


def _flatten(parts: Sequence[Any]) -> list[str | Block]:
    flat: list[str | Block] = []
    for part in parts:
        flat += ["<Think>", *part.parts, "</Think>"] if isinstance(part, Think) else [part]
    return flat


class ScriptedSampler(Sampler):
    """Takes tokens from a script; a branch whose script is over, or that has none, ends with end of text."""

    def __init__(self, script: Script, num_tokens: int, eos_id: int) -> None:
        super().__init__(num_tokens)
        self.script = script
        self.eos_id = eos_id

    def choose(self, logits_NV: torch.Tensor, branches: Sequence[Branch]) -> list[tuple[int, float]]:
        tokens = [self._next(branch) for branch in branches]
        logprobs_NV = at_least_float32(logits_NV[:, : self.num_tokens]).log_softmax(-1)
        return [(token, logprobs_NV[row, token].item()) for row, token in enumerate(tokens)]

    def _next(self, branch: Branch) -> int:
        script = self.script.get(branch.lineage, [])
        return script[branch.num_sampled] if branch.num_sampled < len(script) else self.eos_id
