"""What a run would cost, before anything is asked. Shares that were assumed are named here; the rest is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from mvtrain.curate.curator import CurateSettings
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.records import Source
from mvtrain.curate.stages import groups, map_reduce, rewrite, summary
from mvtrain.curate.stages.texts import CONTEXT
from mvtrain.curate.units import at_most, numbered, split_units

CHARACTERS_PER_TOKEN = 3.0
"""Of reasoning with formulas, roughly."""
TOKENS_PER_STEP = 150
"""Of the chain."""
TOKENS_PER_BLOCK = 1200
SHARE_IN_BLOCKS = 0.6
"""Of the chain's text that stands on paths."""
PATHS_PER_BLOCK = 3
ASKED_AGAIN = 1.25
"""Answers over answers that are taken."""


@dataclass
class Estimate:
    """Of a whole input. Tokens by stage."""

    num_records: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    prompt_tokens: Counter[str] = field(default_factory=Counter)
    completion_tokens: Counter[str] = field(default_factory=Counter)

    def _count(self, stage: str, requests: float, prompt: float, completion: float) -> None:
        self.requests[stage] += round(requests * ASKED_AGAIN)
        self.prompt_tokens[stage] += round(prompt * ASKED_AGAIN)
        self.completion_tokens[stage] += round(completion * ASKED_AGAIN)

    def cost(self, price_input: float | None, price_output: float | None) -> float | None:
        """US dollars, at prices per million tokens; None without prices."""
        if price_input is None or price_output is None:
            return None
        tokens = self.prompt_tokens.total() * price_input + self.completion_tokens.total() * price_output
        return tokens / 1e6


def estimate(sources: Iterable[Source], prompts: Prompts) -> Estimate:
    """From the lengths of the chains and of the prompts."""
    found = Estimate()
    for source in sources:
        found.num_records += 1
        _add(found, source, prompts)
    return found


def expected_cost(source: Source, prompts: Prompts, price_input: float | None, price_output: float | None) -> float:
    """US dollars for one record; 0 without prices."""
    found = Estimate()
    _add(found, source, prompts)
    return found.cost(price_input, price_output) or 0.0


def _add(found: Estimate, source: Source, prompts: Prompts) -> None:
    question, chain = _tokens(source.question), _tokens(source.chain)
    units = at_most(split_units(source.chain), CurateSettings.most_units)
    first = _tokens(prompts.fill(summary.NAME, question=source.question, units=numbered(units)))
    num_steps = max(2.0, chain / TOKENS_PER_STEP)
    num_blocks = max(1.0, chain / TOKENS_PER_BLOCK)
    num_paths = num_blocks * PATHS_PER_BLOCK
    on_paths = SHARE_IN_BLOCKS * chain
    tree, context = 25 * num_steps, question + min(chain / 2, CONTEXT / CHARACTERS_PER_TOKEN)
    own = {name: _tokens(text) for name, text in prompts.texts.items()}
    found._count(summary.NAME, 1, first, tree)
    found._count(groups.NAME, 1, first + 2 * tree + own[groups.NAME], 15 * num_steps)
    per_block = num_blocks * (own[map_reduce.NAME] + context)
    found._count(map_reduce.NAME, num_blocks, per_block + on_paths, 150 * num_blocks)
    per_path = num_paths * (own[rewrite.NAME] + context)
    found._count(rewrite.NAME, num_paths, per_path + on_paths, on_paths)
    judged = num_paths * (own[rewrite.JUDGE] + context) + on_paths
    found._count(rewrite.JUDGE, num_paths, judged, 15 * num_paths)


def _tokens(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN
