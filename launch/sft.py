"""Train: `deepspeed [launcher flags] launch/sft.py RECIPE.yaml [--key value ...]`; `--help` lists the keys."""

from __future__ import annotations

import sys

from mvtrain.train.config import TrainConfig, complain


def main() -> None:
    config = TrainConfig.from_cli()  # recipe YAML, then flags; every problem in one error
    try:
        from mvtrain.train.processes import end_process
        from mvtrain.train.trainer import Trainer  # torch takes seconds to import, --help and mistakes do not need it

        trainer = Trainer(config)  # reads the data and plans; loads no weights
    except (ValueError, OSError, ImportError) as error:
        complain(str(error))
        sys.exit(2)
    try:
        if config.dry_run:
            trainer.dry_run()
        else:
            trainer.train()  # goes on by itself when output_dir holds a checkpoint
            trainer.export()  # a Hugging Face folder, reloaded and compared
    finally:
        trainer.close()
    end_process()


if __name__ == "__main__":
    main()
