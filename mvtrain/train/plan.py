"""Everything a run knows before it trains: examples, and which of them each step reads.

Every rank computes the same plan from the configuration alone, so nothing has to be sent or saved, and the position in
the data is the number of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from mvtrain.data import EIGHT_PHASES, Step, as_indices, balance, build_examples, epochs, phases, plan_steps, rank_packs
from mvtrain.data.collate import Batch, collate
from mvtrain.data.examples import Example, Report
from mvtrain.data.sources import read_records
from mvtrain.layout import Layout, Scheme, TagIds
from mvtrain.manifest import read_manifest
from mvtrain.train.config import TrainConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a run, and how to make a rank's batches of one."""

    config: TrainConfig
    tokenizer: Any
    tags: TagIds
    scheme: Scheme
    examples: list[Example]
    reports: dict[str, Report]
    """Source -> what became of its rows."""
    steps: list[Step]
    costs: list[int]
    """Visible (query, key) pairs of each example."""
    world_size: int

    def batches(self, step: Step, rank: int) -> list[Batch]:
        """One batch per micro-step; a rank without a pack gets a batch without targets."""
        packs = rank_packs(step, rank, self.world_size, self.config.packs_per_rank)
        size = self.config.micro_batch_size
        micro_steps = [chain.from_iterable(packs[i : i + size]) for i in range(0, len(packs), size)]
        return [collate([self.examples[i] for i in members], self.tags, self.scheme) for members in micro_steps]

    def num_targets(self, step: Step) -> int:
        """Tokens with a loss in a step, over all ranks."""
        return sum(self.examples[index].num_targets for pack in step.packs for index in pack)

    def fill(self, step: Step) -> float:
        """Share of the step's packs, missing ones included, that holds tokens."""
        return step.num_tokens / (self.config.context * self.config.packs_per_rank * self.world_size)

    def balance(self, step: Step) -> float:
        """How busy attention keeps the ranks; see `mvtrain.data.balance`."""
        return balance(step, self.costs, self.world_size, self.config.micro_batch_size)

    def phase_name(self, phase: int) -> str:
        """For people; phases count from 1 there."""
        if self.config.data.curriculum == "none":
            return f"epoch {phase + 1}"
        return f"phase {phase + 1}: {EIGHT_PHASES[phase % len(EIGHT_PHASES)]}"


def make_plan(config: TrainConfig, world_size: int) -> Plan:
    """Read the sources and plan the steps.

    Raises:
        ValueError: no tags in the tokenizer, a malformed row (with `data.malformed: error`), or nothing to train on.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    tags = TagIds.from_tokenizer(tokenizer)
    manifest = read_manifest(config.model) or {}
    scheme = config.scheme or manifest.get("scheme", "isolated")
    examples, reports, num_sequential = _read_examples(config, tokenizer)
    costs = [Layout.from_ids(example.input_ids, tags, scheme).num_visible_pairs for example in examples]
    steps = plan_steps(
        _phases(config, num_sequential, len(examples)),
        [example.num_tokens for example in examples],
        config.context,
        config.packs_per_rank * world_size,
        config.data.seed,
        max_tokens=config.data.max_tokens,
        costs=costs,
    )
    return Plan(config, tokenizer, tags, scheme, examples, reports, steps[: config.max_steps], costs, world_size)


def _read_examples(config: TrainConfig, tokenizer: Any) -> tuple[list[Example], dict[str, Report], int]:
    """Examples with the sequential ones first, a report per source, and how many are sequential."""
    examples: list[Example] = []
    reports: dict[str, Report] = {}
    bad_rows = "yield" if config.data.malformed == "skip" else "raise"
    for kind, sources in (("sequential", config.data.sequential), ("parallel", config.data.parallel)):
        for source in sources:
            found, reports[f"{kind} {source}"] = build_examples(
                read_records(source, kind, bad_rows=bad_rows),
                tokenizer,
                context=config.context,
                malformed=config.data.malformed,
                too_long=config.data.too_long,
            )
            examples += found
        if kind == "sequential":
            num_sequential = len(examples)
    if not examples:
        raise ValueError("no example is left to train on:\n" + "\n".join(r.summary() for r in reports.values()))
    return examples, reports, num_sequential


def _phases(config: TrainConfig, num_sequential: int, num_examples: int) -> Any:
    data = config.data
    if data.curriculum == "none":
        endless = data.epochs is None and data.max_tokens is not None
        return epochs(num_examples, None if endless else data.epochs or 1, data.seed)
    passes = [
        as_indices(phases(num_sequential, num_examples - num_sequential, data.seed + number), num_sequential)
        for number in range(data.epochs or 1)
    ]
    return chain.from_iterable(passes)


def step_counts(plan: Plan) -> list[tuple[str, int, int, float]]:
    """Per phase: its name, steps, tokens and mean fill."""
    rows = []
    for phase in dict.fromkeys(step.phase for step in plan.steps):
        steps = [step for step in plan.steps if step.phase == phase]
        tokens = sum(step.num_tokens for step in steps)
        rows.append((plan.phase_name(phase), len(steps), tokens, sum(plan.fill(step) for step in steps) / len(steps)))
    return rows
