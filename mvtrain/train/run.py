"""A run as a process: errors as people should see them, and the exit status that launchers and schedulers go by.

0: done. 1: failed. 2: the user's mistake, nothing was started. 75: stopped on request and saved; start it again.
"""

from __future__ import annotations

import sys
import traceback

from mvtrain.launchers import LaunchError
from mvtrain.provenance import without_secrets
from mvtrain.train.bad_steps import TooManyBadSteps
from mvtrain.train.checkpoint import SaveError
from mvtrain.train.config import ConfigError, TrainConfig
from mvtrain.train.evaluations import Evaluate, EvaluationError
from mvtrain.train.export import ExportError
from mvtrain.train.mistakes import complain
from mvtrain.train.ownership import InUse
from mvtrain.train.processes import end_process
from mvtrain.train.stopping import STOPPED, Preempted, StopSignals
from mvtrain.train.trainer import Trainer

EXPECTED = (SaveError, ExportError, TooManyBadSteps, ConfigError, InUse)
"""Errors that need no traceback: what happened and what to do is in their text."""


def run(config: TrainConfig, evaluate: Evaluate | None = None) -> None:
    """Train and export, or with `dry_run` tell what would be done. Ends the process."""
    signals = StopSignals()
    signals.install()
    try:
        trainer = Trainer(config, signals, evaluate)  # reads the data and plans; loads no weights
    except (ValueError, OSError, ImportError) as error:
        complain(str(error))
        sys.exit(2)
    if config.dry_run:
        trainer.dry_run()
        end_process(0)
    try:
        trainer.train()  # goes on by itself when output_dir holds a checkpoint
        trainer.export()  # a Hugging Face folder, reloaded and compared
    except Preempted as stop:
        trainer.progress.note(f"sft: {stop}; the same command goes on from there")
        trainer.close()
        end_process(STOPPED)
    except LaunchError as error:  # before the first step
        complain(str(error), for_all=error.on_all_ranks)
        trainer.close()
        end_process(2)
    except EXPECTED as error:  # on every rank alike
        complain(str(error), for_all=True)
        trainer.close()
        end_process(2 if isinstance(error, ConfigError) else 1)
    except EvaluationError as error:  # on this rank; the others wait for it until they are told
        complain(str(error), for_all=False)
        trainer.fail(error)
        end_process(1)
    except BaseException as error:
        trainer.fail(error)
        text = without_secrets(traceback.format_exc())
        print(f"[rank {trainer.ranks.rank}] {text}", file=sys.stderr, flush=True)
        end_process(1)
    trainer.close()
    end_process(0)
