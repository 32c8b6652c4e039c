"""One update of the weights, and what is known of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from mvtrain.data.kinds import KINDS
from mvtrain.train import memory
from mvtrain.train.clock import StepClock
from mvtrain.train.config import TrainConfig
from mvtrain.train.engine_setup import gradient_norm, set_learning_rate
from mvtrain.train.flops import peak_flops, step_flops
from mvtrain.train.loading import BatchesAhead
from mvtrain.train.plan import Plan
from mvtrain.train.processes import Ranks
from mvtrain.train.schedule import learning_rate
from mvtrain.train.stopping import StopSignals
from mvtrain.train.tag_rows import correction_rate


@dataclass
class Update:
    """Sums over all ranks, and this rank's own numbers."""

    losses: list[float]
    """Sum of the losses by kind of target."""
    num_targets: list[float]
    """By kind."""
    num_path_tokens: float
    stop: bool
    """Some rank was asked to stop."""
    applied: bool
    """False where a loss or gradient was not finite: the weights are what they were."""
    micro_losses: list[float]
    """Of this rank."""
    seconds: dict[str, float]


class Stepper:
    """Runs steps of a plan on this rank."""

    def __init__(
        self, config: TrainConfig, ranks: Ranks, plan: Plan, engine: Any, batches: BatchesAhead, signals: StopSignals
    ) -> None:
        self.config, self.ranks, self.plan = config, ranks, plan
        self.engine, self.batches, self.signals = engine, batches, signals
        self.num_parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
        self.peak_flops = peak_flops(ranks.device)

    def run(self, number: int) -> Update:
        """Forward, backward and update for one step, counted from 0. Called by every rank."""
        clock = StepClock(self.ranks.device)
        began = time.perf_counter()
        rate = self.rate(number)
        set_learning_rate(self.engine, rate, self.tag_rate(number) - rate)
        batches = self.batches.of_step(number)
        waited = time.perf_counter() - began
        by_kind, micro_losses = self._forward_and_backward(batches, number, clock)
        counts = [sum(batch.num_targets[kind] for batch in batches) for kind in range(len(KINDS))]
        path_tokens = sum(batch.num_path_tokens for batch in batches)
        stop = float(self.signals.received is not None)
        sums = self.ranks.sum(*by_kind.tolist(), *counts, path_tokens, stop)
        losses, counts = sums[: len(KINDS)], sums[len(KINDS) : 2 * len(KINDS)]
        seconds = {"data": waited, **clock.seconds()}
        seconds["other"] = (total := time.perf_counter() - began) - sum(seconds.values())
        return Update(
            losses=losses,
            num_targets=counts,
            num_path_tokens=sums[-2],
            stop=sums[-1] > 0,
            applied=self.engine.was_step_applied() and math.isfinite(sum(losses)),
            micro_losses=micro_losses.tolist(),
            seconds={"all": total, **seconds},
        )

    def rate(self, number: int) -> float:
        """Learning rate of a step."""
        c = self.config
        return learning_rate(number, len(self.plan.steps), c.learning_rate, c.warmup_ratio, c.min_lr_ratio)

    def tag_rate(self, number: int) -> float:
        """Of the tags' rows."""
        rate = self.rate(number)
        if self.config.tag_learning_rate is None:
            return rate
        return rate + correction_rate(rate, self.config.learning_rate, self.config.tag_learning_rate)

    def _forward_and_backward(
        self, batches: list[Any], number: int, clock: StepClock
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's sums of losses: by kind, and by micro-step."""
        num_targets = max(1, self.plan.num_targets(self.plan.steps[number]))
        # DeepSpeed averages gradients over ranks and micro-steps; this makes it the mean over the step's targets.
        scale = self.ranks.world_size * len(batches) / num_targets
        by_kind_MK = torch.zeros(len(batches), len(KINDS), dtype=torch.float64, device=self.ranks.device)
        for micro_step, batch in enumerate(batches):
            inputs = batch.to(self.ranks.device).for_model()
            with clock("forward"):
                loss, losses_K = self.engine(**inputs)
            with clock("backward"):
                self.engine.backward(loss * scale)
            with clock("step"):
                self.engine.step()
            by_kind_MK[micro_step] = losses_K
        return by_kind_MK.sum(0), by_kind_MK.sum(1)


def record_of(stepper: Stepper, number: int, update: Update) -> dict[str, Any]:
    """The step's line of log.jsonl, without what needs the steps before it."""
    plan, ranks = stepper.plan, stepper.ranks
    step = plan.steps[number]
    seconds = update.seconds["all"]
    num_targets = sum(update.num_targets)
    tokens_per_s = step.num_tokens / seconds
    record = {
        "step": number + 1,
        "phase": plan.phase_name(step.phase),
        "epoch": round(plan.epoch(number), 4),
        "loss": sum(update.losses) / max(1, num_targets),
        **{
            f"loss_{kind}": loss / count if count else None
            for kind, loss, count in zip(KINDS, update.losses, update.num_targets, strict=True)
        },
        "lr": stepper.rate(number),
        "grad_norm": gradient_norm(stepper.engine),
        "tokens": step.num_tokens,
        "targets": int(num_targets),
        "parallel_share": round(update.num_path_tokens / max(1, step.num_tokens), 4),
        "tokens_per_s": round(tokens_per_s, 1),
        "tokens_per_s_per_rank": round(tokens_per_s / ranks.world_size, 1),
        "fill": round(plan.fill(step), 4),
        "balance": round(plan.balance(step), 4),
        "seconds": round(seconds, 3),
        **{f"seconds_{name}": round(value, 4) for name, value in update.seconds.items() if name != "all"},
        **memory.peak_memory(ranks.device),
    }
    if stepper.peak_flops:
        pairs = plan.num_visible_pairs(step)
        flops = step_flops(stepper.engine.module.lm.config, stepper.num_parameters, step.num_tokens, pairs)
        record["mfu"] = round(flops / seconds / (stepper.peak_flops * ranks.world_size), 4)
    if stepper.config.tag_learning_rate:
        record["lr_tags"] = stepper.tag_rate(number)
    if not update.applied:
        record["skipped"] = True
    return {key: None if _is_no_number(value) else value for key, value in record.items()}


def _is_no_number(value: Any) -> bool:
    """JSON has no NaN and no infinity."""
    return isinstance(value, float) and not math.isfinite(value)
