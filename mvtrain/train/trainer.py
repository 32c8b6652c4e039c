"""Training: plan, then step by step, then export.

trainer = Trainer(config)     # reads data and plans; loads no weights
trainer.train()               # goes on by itself when output_dir holds a checkpoint
trainer.export()
trainer.close()
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mvtrain.train import memory
from mvtrain.train.checkpoint import load_checkpoint, matching_checkpoint, save_checkpoint
from mvtrain.train.config import TrainConfig
from mvtrain.train.engine_setup import gradient_norm, set_learning_rate, start_engine
from mvtrain.train.export import export_model
from mvtrain.train.loading import BatchesAhead, heads_of
from mvtrain.train.plan import make_plan, step_counts
from mvtrain.train.processes import Ranks
from mvtrain.train.progress import Progress
from mvtrain.train.schedule import learning_rate
from mvtrain.train.settings import deepspeed_settings, zero_stage
from mvtrain.train.tracking import NoTracker, StepLog, WandbTracker, start_tracker


class Trainer:
    """One run on this rank.

    Raises:
        ValueError: data, tokenizer, checkpoint or DeepSpeed configuration do not fit. Nothing was started.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.ranks = Ranks.from_environment()
        self.settings = deepspeed_settings(config, self.ranks.world_size)
        self.stage = zero_stage(self.settings)
        self.checkpoint = matching_checkpoint(config, self.ranks.world_size, self.stage)
        self.plan = make_plan(config, self.ranks.world_size)
        self.progress = Progress(len(self.plan.steps), config.log_every, sys.stdout if self.ranks.is_first else None)
        self.engine: Any = None
        self.batches: BatchesAhead | None = None
        self.num_done = 0
        self.log: StepLog | None = None
        self.tracker: NoTracker | WandbTracker = NoTracker()

    def train(self) -> None:
        """Run the steps that are left, save checkpoints, and log."""
        if self.engine is None:
            self.start()
        for number in range(self.num_done, len(self.plan.steps)):
            self._record(self.run_step(number))
            self.num_done = number + 1
            if self._is_time_to_save():
                folder = save_checkpoint(self.engine, self.ranks, self.config, self.stage, self.num_done)
                self.progress.note(f"saved {folder}")

    def start(self) -> None:
        """Connect the ranks, load the model and the checkpoint to go on from."""
        self.progress.note(self._data_summary())
        self.progress.note(self._headline())
        self.ranks.connect()
        self.engine = start_engine(self.config, self.settings)
        lm = self.engine.module.lm
        self.batches = BatchesAhead(self.plan, self.ranks.rank, heads_of(lm.config, lm.dtype), self.ranks.device)
        if self.checkpoint is not None:
            self.num_done = load_checkpoint(self.engine, self.checkpoint)
            self.progress.note(f"resumed after step {self.num_done} of {len(self.plan.steps)}")
        if self.ranks.is_first:
            self.log = StepLog(Path(self.config.output_dir), self.num_done)
            self.tracker = start_tracker(self.config)

    def run_step(self, number: int) -> dict[str, Any]:
        """One update of the weights. Returns its line of log.jsonl."""
        began = time.perf_counter()
        step = self.plan.steps[number]
        rate = learning_rate(
            number, len(self.plan.steps), self.config.learning_rate, self.config.warmup_ratio, self.config.min_lr_ratio
        )
        set_learning_rate(self.engine, rate)
        loss = self._forward_and_backward(number)
        (loss,) = self.ranks.sum(loss)
        seconds = time.perf_counter() - began
        return {
            "step": number + 1,
            "phase": self.plan.phase_name(step.phase),
            "loss": loss,
            "lr": rate,
            "grad_norm": gradient_norm(self.engine),
            "tokens": step.num_tokens,
            "targets": self.plan.num_targets(step),
            "tokens_per_s": round(step.num_tokens / seconds, 1),
            "fill": round(self.plan.fill(step), 4),
            "balance": round(self.plan.balance(step), 4),
            "seconds": round(seconds, 3),
            **memory.peak_memory(self.ranks.device),
        }

    def _forward_and_backward(self, number: int) -> float:
        """Run this rank's micro-steps. Returns its part of the mean loss per target of the whole step."""
        num_targets = max(1, self.plan.num_targets(self.plan.steps[number]))
        # DeepSpeed averages gradients over ranks and micro-steps; this makes it the mean over the step's targets.
        scale = self.ranks.world_size * self.config.gradient_accumulation_steps / num_targets
        total = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for batch in self.batches.of_step(number):
            batch = batch.to(self.ranks.device, non_blocking=True)
            loss = self.engine(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                labels=batch.labels,
                layout=batch.layout,
            )
            self.engine.backward(loss * scale)
            self.engine.step()
            total += loss.detach()
        return total.item() / num_targets

    def export(self) -> Path:
        """Write output_dir/export, reload it and compare. Returns the folder."""
        folder, difference = export_model(self.engine, self.ranks, self.plan, self.num_done, self.stage)
        self.progress.note(f"exported {folder}; reloaded: the largest difference of a logit is {difference:.3g}")
        return folder

    def close(self) -> None:
        """Close logs and leave the process group. May be called at any time."""
        self.tracker.close()
        if self.batches is not None:
            self.batches.close()
        if self.log is not None:
            self.log.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def dry_run(self) -> None:
        """Print what a run would do, and what it would need."""
        if self.ranks.is_first:
            print(self.describe())

    def describe(self) -> str:
        """Configuration, data, steps per phase and memory per rank."""
        lines = ["configuration", _indent(json.dumps(self.config.model_dump(), indent=2)), self._data_summary()]
        lines.append(f"plan ({self._headline()})")
        for name, num_steps, tokens, fill in step_counts(self.plan):
            lines.append(f"  {name}: {num_steps} steps, {tokens / num_steps:,.0f} tokens a step, fill {fill:.1%}")
        lines.append(f"memory per rank, estimated (ZeRO stage {self.stage}, {self.ranks.world_size} ranks)")
        offload = "offload_optimizer" in self.settings["zero_optimization"]
        size = memory.ModelSize.of_checkpoint(self.config.model)
        parts = memory.estimate(size, self.config, self.stage, self.ranks.world_size, offload)
        lines += [f"  {use:<12} {num_bytes / 2**30:8.2f} GiB" for use, num_bytes in parts.items()]
        return "\n".join([*lines, f"  {'in all':<12} {sum(parts.values()) / 2**30:8.2f} GiB"])

    def _data_summary(self) -> str:
        """What became of the rows of each source: what was dropped or skipped must never go unseen."""
        lines = ["data"]
        for source, report in self.plan.reports.items():
            lines += [f"  {source}", _indent(report.summary(), 4)]
        return "\n".join(lines)

    def _headline(self) -> str:
        tokens = sum(step.num_tokens for step in self.plan.steps)
        balance = sum(self.plan.balance(step) for step in self.plan.steps) / len(self.plan.steps)
        return (
            f"{len(self.plan.steps)} steps, {tokens:,} tokens, {self.ranks.world_size} ranks (attention keeps "
            f"{balance:.1%} of them busy), ZeRO stage {self.stage}, {self.config.precision}, {self.plan.scheme} scheme"
        )

    def _record(self, record: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(record)
            self.tracker.log(record)
        self.progress.show(record)

    def _is_time_to_save(self) -> bool:
        every = self.config.save_every_steps
        return self.num_done == len(self.plan.steps) or (every > 0 and self.num_done % every == 0)


def _indent(text: str, width: int = 2) -> str:
    return "\n".join(" " * width + line for line in text.splitlines())
