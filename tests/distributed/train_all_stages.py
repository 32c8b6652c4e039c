"""Run on each rank: train with every recipe given, one after another; save losses, norms and final weights."""

from __future__ import annotations

import sys

import torch

from mvtrain.train.config import TrainConfig
from mvtrain.train.export import whole_state
from mvtrain.train.processes import end_process
from mvtrain.train.step import record_of
from mvtrain.train.trainer import Trainer


def step(trainer: Trainer, number: int) -> dict:
    return record_of(trainer.stepper, number, trainer.stepper.run(number))


def main() -> None:
    for recipe in sys.argv[1:]:
        trainer = Trainer(TrainConfig.parse([recipe]))
        trainer.start()
        records = [step(trainer, number) for number in range(len(trainer.plan.steps))]
        state = whole_state(trainer.engine, trainer.stage)
        if trainer.ranks.is_first:
            torch.save({"records": records, "state": state}, recipe.replace(".yaml", ".pt"))
        trainer.engine.destroy()
    trainer.close()
    end_process()


if __name__ == "__main__":
    main()
