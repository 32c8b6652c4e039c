"""Run on each rank: train with every recipe given, one after another; save losses, gradients and final weights."""

from __future__ import annotations

import sys

import torch
from deepspeed.utils import safe_get_full_grad

from mvtrain.train.config import TrainConfig
from mvtrain.train.export import whole_state
from mvtrain.train.processes import end_process
from mvtrain.train.step import record_of
from mvtrain.train.trainer import Trainer


def main() -> None:
    for recipe in sys.argv[1:]:
        trainer = Trainer(TrainConfig.parse([recipe]))
        trainer.start()
        gradients = record_gradients(trainer.engine)
        records = [record_of(trainer.stepper, n, trainer.stepper.run(n)) for n in range(len(trainer.plan.steps))]
        state = whole_state(trainer.engine, trainer.stage)
        if trainer.ranks.is_first:
            torch.save({"records": records, "state": state, "gradients": gradients}, recipe.replace(".yaml", ".pt"))
        trainer.engine.destroy()
        trainer.watch.close()
    trainer.close()
    end_process()


def record_gradients(engine) -> dict[str, torch.Tensor]:
    """Whole gradients of the first update, before clipping, filled in when it comes."""
    gradients: dict[str, torch.Tensor] = {}
    step = engine.step

    def recording_step() -> None:
        if engine.is_gradient_accumulation_boundary() and not gradients:
            for name, parameter in engine.module.named_parameters():
                gradients[name.removeprefix("lm.")] = safe_get_full_grad(parameter).clone()
        step()

    engine.step = recording_step
    return gradients


if __name__ == "__main__":
    main()
