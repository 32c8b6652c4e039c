"""Everything a run knows before it trains: examples, and which of them each step reads.

Every rank computes the same plan from the configuration alone, so nothing has to be sent or saved, and the position in
the data is the number of the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from typing import Any

from mvtrain.data import EIGHT_PHASES, Step, as_indices, balance, build_examples, epochs, phases, plan_steps, rank_packs
from mvtrain.data.collate import Batch, collate
from mvtrain.data.examples import Example, Report
from mvtrain.data.sources import read_records
from mvtrain.layout import Layout, Scheme, TagIds
from mvtrain.manifest import read_manifest
from mvtrain.train.batching import Batching
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
    batching: Batching

    def batches(self, step: Step, rank: int) -> list[Batch]:
        """One batch per micro-step; a rank without a pack gets a batch without targets.

        With sequence parallelism the ranks of a group get the same batches, whole, with a multiple of its size of
        tokens.
        """
        return [self._collate(members) for members in self._micro_steps(step, self.batching.group_of(rank))]

    def rows(self, step: Step, rank: int) -> list[list[str]]:
        """File and row of the examples of each micro-step."""
        micro_steps = self._micro_steps(step, self.batching.group_of(rank))
        return [[self.examples[i].where for i in members] for members in micro_steps]

    def _micro_steps(self, step: Step, group: int) -> list[list[int]]:
        packs = rank_packs(step, group, self.batching.num_groups, self.batching.packs_per_rank)
        size = self.batching.micro_batch_size
        return [list(chain.from_iterable(packs[i : i + size])) for i in range(0, len(packs), size)]

    def _collate(self, members: list[int]) -> Batch:
        examples = [self.examples[i] for i in members]
        size = self.batching.sequence_parallel_size
        num_tokens = max(1, sum(example.num_tokens for example in examples))
        return collate(examples, self.tags, self.scheme, pad_to=-(-num_tokens // size) * size)

    def num_targets(self, step: Step) -> int:
        """Tokens with a loss in a step, over all ranks."""
        return sum(self.examples[index].num_targets for pack in step.packs for index in pack)

    def num_visible_pairs(self, step: Step) -> int:
        """(query, key) pairs that attention computes in a step."""
        return sum(self.costs[index] for pack in step.packs for index in pack)

    def fill(self, step: Step) -> float:
        """Share of the step's packs, missing ones included, that holds tokens."""
        return step.num_tokens / (self.config.context * self.batching.packs_per_rank * self.batching.num_groups)

    def balance(self, step: Step) -> float:
        """How busy attention keeps the ranks; see `mvtrain.data.balance`."""
        return balance(step, self.costs, self.batching.num_groups, self.batching.micro_batch_size)

    def epoch(self, number: int) -> float:
        """Passes over the data that are done after a step, counted from 0: examples read over examples."""
        return self._examples_read[number] / len(self.examples)

    @cached_property
    def _examples_read(self) -> list[int]:
        return list(accumulate(sum(len(pack) for pack in step.packs) for step in self.steps))

    def phase_name(self, phase: int) -> str:
        """For people; phases count from 1 there."""
        if self.config.data.curriculum == "none":
            return f"epoch {phase + 1}"
        return f"phase {phase + 1}: {EIGHT_PHASES[phase % len(EIGHT_PHASES)]}"


def make_plan(config: TrainConfig, world_size: int, packs_per_step: int | None = None) -> Plan:
    """Read the sources and plan the steps; `packs_per_step` overrides the recipe's, for a run that goes on.

    Raises:
        ValueError: no tags in the tokenizer, a malformed row (with `data.malformed: error`), nothing to train on, or
            evaluations that the scheme cannot have.
    """
    from transformers import AutoTokenizer

    batching = Batching.of(config, world_size, packs_per_step)
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    tags = TagIds.from_tokenizer(tokenizer)
    manifest = read_manifest(config.model) or {}
    scheme = config.scheme or manifest.get("scheme", "isolated")
    if scheme == "causal" and config.evaluate.every_steps:
        raise ValueError(
            "evaluate.every_steps: scheme causal runs no paths; set it to 0, and evaluate later with --scheme isolated"
        )
    examples, reports, num_sequential = _read_examples(config, tokenizer)
    costs = [Layout.from_ids(example.input_ids, tags, scheme).num_visible_pairs for example in examples]
    steps = plan_steps(
        _phases(config, num_sequential, len(examples)),
        [example.num_tokens for example in examples],
        config.context,
        batching.packs_per_step,
        config.data.seed,
        max_tokens=config.data.max_tokens,
        costs=costs,
    )
    return Plan(config, tokenizer, tags, scheme, examples, reports, steps[: config.max_steps], costs, batching)


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
