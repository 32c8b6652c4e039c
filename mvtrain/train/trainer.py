"""Training: plan, then step by step, then export.

trainer = Trainer(config)     # reads data and plans; loads no weights
trainer.train()               # goes on by itself when output_dir holds a checkpoint
trainer.export()
trainer.close()
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mvtrain.launchers import LaunchError
from mvtrain.provenance import without_secrets
from mvtrain.train import resume
from mvtrain.train.bad_steps import BadSteps
from mvtrain.train.batching import Batching
from mvtrain.train.checkpoint import SaveError, save_checkpoint
from mvtrain.train.checkpoint_files import read_state, write_durably
from mvtrain.train.config import TrainConfig
from mvtrain.train.engine_setup import start_engine
from mvtrain.train.estimate import ModelSize, estimate, fullest
from mvtrain.train.evaluations import Evaluate, Evaluations
from mvtrain.train.export import ExportError, export_model
from mvtrain.train.header import HEADER_NAME, run_header
from mvtrain.train.identity import identity
from mvtrain.train.loading import BatchesAhead, heads_of
from mvtrain.train.model import check_model
from mvtrain.train.ownership import InUse, Ownership, check_owned
from mvtrain.train.plan import make_plan, step_counts
from mvtrain.train.processes import Ranks
from mvtrain.train.progress import Progress
from mvtrain.train.settings import check_with_deepspeed, deepspeed_settings, zero_stage
from mvtrain.train.shared_folder import check_same_on_all_ranks, check_shared_folder
from mvtrain.train.step import Stepper, record_of
from mvtrain.train.stopping import MARKER, Preempted, StopSignals
from mvtrain.train.tracking import NoTracker, PhaseLoss, StepLog, WandbTracker, start_tracker
from mvtrain.train.watch import Watch


class Trainer:
    """One run on this rank.

    Args:
        evaluate: measures the weights every so many steps, see `evaluations`.
        signals: installed where the process belongs to the run; asked after every step.

    Raises:
        ValueError: data, tokenizer, checkpoint or DeepSpeed configuration do not fit. Nothing was started.
    """

    def __init__(
        self, config: TrainConfig, signals: StopSignals | None = None, evaluate: Evaluate | None = None
    ) -> None:
        self.config = config
        self.signals = signals or StopSignals()
        self.ranks = Ranks.from_environment()
        self.settings = deepspeed_settings(config, Batching.of(config, self.ranks.world_size))
        if not config.dry_run or find_spec("deepspeed"):
            check_with_deepspeed(self.settings, config.deepspeed)
        check_model(config.model, config.sequence_parallel_size)
        self.stage = zero_stage(self.settings)
        self.candidates = resume.candidates(config)
        packs_per_step = resume.saved_packs_per_step(config, self.candidates, self.ranks.world_size)
        self.plan = make_plan(config, self.ranks.world_size, packs_per_step)
        self.settings = deepspeed_settings(config, self.plan.batching)
        self.identity = identity(config, self.plan)
        for folder in filter(resume.is_readable, self.candidates[:1]):
            resume.refuse_another_run(folder, self.identity, self.stage)
            self.signals.num_saved = read_state(folder)["step"]
        self.evaluations = Evaluations(self.plan, self.ranks, evaluate)
        self.progress = Progress(len(self.plan.steps), config.log_every, sys.stdout if self.ranks.is_first else None)
        self.engine: Any = None
        self.stepper: Stepper | None = None
        self.batches: BatchesAhead | None = None
        self.watch: Watch | None = None
        self.owned: Ownership | None = None
        self.num_done = 0
        self.num_saved = 0
        self.run_id = secrets.token_hex(4)
        self.resumed_from: dict[str, Any] | None = None
        self.log: StepLog | None = None
        self.tracker: NoTracker | WandbTracker = NoTracker()

    def train(self) -> None:
        """Run the steps that are left, save checkpoints, and log.

        Raises:
            Preempted: a signal asked the run to stop; it saved first.
            SaveError: a checkpoint could not be written, with `on_save_error: stop`.
            TooManyBadSteps: see `max_bad_steps`.
            InUse: another run has taken output_dir over.
        """
        if self.engine is None:
            self.start()
        self.signals.finish_steps(True)
        while self.num_done < len(self.plan.steps):
            update = self._step()
            if not update.stop and self.evaluations.is_due(self.num_done, len(self.plan.steps)):
                self._evaluate()
            if update.stop or self._is_time_to_save():
                self._save(must=update.stop)
            if update.stop:
                self._leave_mark()
                raise Preempted(f"stopped after step {self.num_done} of {len(self.plan.steps)}, saved")
        self.signals.finish_steps(False)

    def start(self) -> None:
        """Connect the ranks, load the model and the checkpoint to go on from.

        Raises:
            LaunchError: the ranks cannot reach each other, or see different files; or another run is in output_dir.
        """
        self.progress.note(self._data_summary())
        self.progress.note(self._headline())
        self.ranks.connect()
        self.watch = Watch(self.ranks)
        self.watch.leave, self.signals.leave = self._leave, self._leave_with_all
        self._check_that_ranks_agree()
        checkpoint = self._choose_checkpoint()
        group = self.ranks.sequence_group(self.plan.batching)
        self.engine = start_engine(self.config, self.settings, self.plan.tags.as_tuple(), group)
        lm = self.engine.module.lm
        heads = heads_of(lm.config, lm.dtype, self.plan.batching)
        self.batches = BatchesAhead(self.plan, self.ranks.rank, heads, self.ranks.device)
        self.stepper = Stepper(self.config, self.ranks, self.plan, self.engine, self.batches, self.signals)
        if checkpoint is not None:
            self._go_on_from(checkpoint)
        self.header = json.dumps(run_header(self.config, self.settings, self.ranks), indent=2) + "\n"
        folder = Path(self.config.output_dir)
        self.bad_steps = BadSteps(self.ranks, self.plan, folder, self.config.max_bad_steps, self.num_done)
        if self.ranks.is_first:
            self.log = StepLog(folder, self.num_done)
            self.phase_loss = PhaseLoss(self.log.kept)
            write_durably(folder / HEADER_NAME, self.header)
            self.tracker = start_tracker(self.config, self.run_id)

    def _check_that_ranks_agree(self) -> None:
        """Ranks that differ in what they read would wait for each other without end, or spoil the weights."""
        lag = check_shared_folder(Path(self.config.output_dir), self.ranks)
        if lag > 1:
            self.progress.note(f"{self.config.output_dir}: a new file took {lag:.1f} s to show up on every host")
        self._own_output_dir()
        names = [folder.name for folder in self.candidates]
        check_same_on_all_ranks("the list of checkpoints to resume from", ", ".join(names) or "none", self.ranks)
        for part, values in self.identity.items():
            digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
            check_same_on_all_ranks(f"the {part}", digest, self.ranks)

    def _own_output_dir(self) -> None:
        folder = Path(self.config.output_dir)

        def take() -> None:
            if self.ranks.is_first:
                self.owned = Ownership(folder, self.progress.note)
                (folder / MARKER).unlink(missing_ok=True)

        def look_again() -> None:
            self.candidates = resume.candidates(self.config)  # another run may have ended since we looked

        for action in (take, look_again):
            problem = None
            try:
                action()
            except (InUse, ValueError, OSError) as error:
                problem = str(error)
            problems = [text for text in self.ranks.gather(problem) if text]
            if problems:
                raise LaunchError(problems[0], on_all_ranks=True)

    def _choose_checkpoint(self) -> Path | None:
        """On every rank. Prepares DeepSpeed for a checkpoint of another number of ranks."""
        for folder in resume.cut_off(self.config):
            self.progress.note(f"{folder} was cut off while it was written; passing over it")
        checkpoint = resume.first_undamaged(self.config, self.candidates, self.ranks, self.progress.note)
        if checkpoint is None:
            return None
        resume.refuse_another_run(checkpoint, self.identity, self.stage)
        saved = read_state(checkpoint)["world_size"]
        if saved != self.ranks.world_size:
            self.progress.note(f"going from {saved} to {self.ranks.world_size} ranks")
        if resume.needs_conversion(checkpoint, self.ranks):
            resume.make_universal(checkpoint, self.ranks, self.progress.note)
            self.settings["checkpoint"] = {**self.settings.get("checkpoint", {}), "load_universal": True}
        return checkpoint

    def _go_on_from(self, checkpoint: Path) -> None:
        self.num_done = self.num_saved = resume.load_checkpoint(self.engine, checkpoint, self.ranks)
        self.signals.num_saved = self.num_saved
        self.run_id = read_state(checkpoint)["run_id"]
        self.resumed_from = resume.descends_from(checkpoint, self.config)
        self.progress.note(f"resumed after step {self.num_done} of {len(self.plan.steps)} ({checkpoint})")

    def _step(self) -> Any:
        number = self.num_done
        update = self.stepper.run(number)
        record = record_of(self.stepper, number, update)
        if self.log is not None:
            record["phase_loss"] = self.phase_loss.add(record)
            self.log.write(record)
            self.tracker.log(record)
        self.progress.show(record)
        warning = self.bad_steps.watch(number, update)
        if warning:
            self.progress.note(f"warning: {warning}")
        self.num_done = number + 1
        return update

    def _evaluate(self) -> None:
        figures = self.evaluations.run(self.engine, self.num_done, self.stage)
        if figures is not None:
            self.tracker.log({"step": self.num_done, **figures})
            shown = ", ".join(f"{name.removeprefix('evaluate/')} {value:.3g}" for name, value in figures.items())
            self.progress.note(f"evaluated after step {self.num_done}: {shown}")

    def _is_time_to_save(self) -> bool:
        every = self.config.save_every_steps
        return self.num_done == len(self.plan.steps) or (every > 0 and self.num_done % every == 0)

    def _save(self, must: bool) -> None:
        state = {
            "step": self.num_done,
            "phase": self.plan.phase_name(self.plan.steps[self.num_done - 1].phase),
            "world_size": self.ranks.world_size,
            "zero_stage": self.stage,
            "run_id": self.run_id,
            "resumed_from": self.resumed_from,
            "identity": self.identity,
        }
        check_owned(self.owned, self.ranks)
        try:
            folder = save_checkpoint(self.engine, self.ranks, self.config, state, self.header)
        except SaveError as error:
            last = f"the last good checkpoint is of step {self.num_saved}" if self.num_saved else "there is none yet"
            if must or self.config.on_save_error == "stop":
                raise SaveError(f"{error}; {last}") from None
            self.progress.note(f"warning: {error}; {last}; going on (on_save_error: continue)")
            return
        self.num_saved = self.signals.num_saved = self.num_done
        self.progress.note(f"saved {folder}")

    def export(self) -> Path:
        """Write output_dir/export, reload it and compare. Returns the folder.

        Raises:
            ExportError: on every rank; it could not be written, or is not what was trained.
            InUse: on every rank; another run has taken output_dir over.
        """
        check_owned(self.owned, self.ranks)
        try:
            folder, difference = export_model(self.engine, self.ranks, self.plan, self.num_done, self.stage)
        except ExportError as error:
            raise ExportError(f"{error}; the last good checkpoint is of step {self.num_saved}") from None
        self.progress.note(f"exported {folder}; reloaded: the largest difference of a logit is {difference:.3g}")
        return folder

    def close(self) -> None:
        """Close logs and leave the process group, after success or a stop. May be called at any time."""
        self.tracker.close()
        if self.batches is not None:
            self.batches.close()
        if self.log is not None:
            self.log.close()
        if self.watch is not None:
            self.watch.close()
        if self.owned is not None:
            self.owned.release()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _leave_with_all(self) -> None:
        """Asked to stop while no step is running: the process ends right after this, and so do the other ranks."""
        self._leave()
        self.watch.stop_others()

    def _leave(self) -> None:
        self._leave_mark()
        if self.owned is not None:
            self.owned.release()

    def _leave_mark(self) -> None:
        """On the first rank, for who cannot see our exit status."""
        if self.owned is not None:
            with suppress(OSError):  # a disk without room; the status says it too
                write_durably(Path(self.config.output_dir) / MARKER, json.dumps({"step": self.num_saved}) + "\n")

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks why this one ends, so that they end too, and keep what was logged."""
        if self.watch is not None:
            self.watch.explain(error)
        self.tracker.close()

    def dry_run(self) -> None:
        """Print what a run would do, and what it would need."""
        if self.ranks.is_first:
            print(without_secrets(self.describe()))

    def describe(self) -> str:
        """Configuration, data, steps per phase and memory per rank."""
        lines = ["configuration", _indent(json.dumps(self.config.model_dump(), indent=2)), self._data_summary()]
        lines.append(f"plan ({self._headline()})")
        for name, num_steps, tokens, fill in step_counts(self.plan):
            lines.append(f"  {name}: {num_steps} steps, {tokens / num_steps:,.0f} tokens a step, fill {fill:.1%}")
        size = ModelSize.of_checkpoint(self.config.model)
        moment, parts = fullest(estimate(size, self.config, self.plan.batching, self.settings))
        where = f"ZeRO stage {self.stage}, {self.ranks.world_size} ranks"
        lines.append(f"memory per rank, estimated ({where}; fullest moment: {moment})")
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


def _indent(text: str, width: int = 2) -> str:
    return "\n".join(" " * width + line for line in text.splitlines())
