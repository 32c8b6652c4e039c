"""Train: `deepspeed [launcher flags] launch/sft.py RECIPE.yaml [--key value ...]`; `--help` lists the keys."""

from __future__ import annotations

import sys

from mvtrain.train.config import TrainConfig, complain


def main() -> None:
    config = TrainConfig.from_cli()  # recipe YAML, then flags; every problem in one error
    try:
        from mvtrain.train.run import run  # torch takes seconds to import, --help and mistakes do not need it
    except ImportError as error:
        complain(str(error))
        sys.exit(2)
    run(config)


if __name__ == "__main__":
    main()
