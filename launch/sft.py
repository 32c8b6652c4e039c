"""Train: `deepspeed [launcher flags] launch/sft.py RECIPE.yaml [--key value ...]`; `--help` lists the keys."""

from __future__ import annotations

import sys
from typing import Any

from mvtrain.train.config import TrainConfig
from mvtrain.train.launcher_gone import stop_with_launcher
from mvtrain.train.mistakes import complain


def main() -> None:
    stop_with_launcher()  # a launcher that ends without a word shall not leave this process behind
    config = TrainConfig.from_cli()  # recipe YAML, then flags; every problem in one error
    try:
        from mvtrain.train.run import run  # torch takes seconds to import, --help and mistakes do not need it
    except ImportError as error:
        complain(str(error))
        sys.exit(2)
    run(config, evaluator(config))


def evaluator(config: TrainConfig) -> Any:
    """What measures the weights while they are trained, if the recipe asks for it; its task is read at once."""
    if not config.evaluate.every_steps:
        return None
    try:
        from mvtrain.evaluate.in_training import check_task, evaluate_in_training

        check_task(config.evaluate)
    except (ValueError, OSError, ImportError) as error:
        complain(f"evaluate.task: {error}")
        sys.exit(2)
    return evaluate_in_training


if __name__ == "__main__":
    main()
