"""Evaluate on several processes: `deepspeed [launcher flags] launch/evaluate.py CKPT --task TASK [options]`.

Every rank loads the checkpoint, answers every n-th problem with an engine of its own, and the first one reports. The
options are those of `mvtrain evaluate`.
"""

from __future__ import annotations

import sys

from mvtrain.cli import main


def without_launcher_flag(arguments: list[str]) -> list[str]:
    """DeepSpeed's launcher adds --local_rank=N, which is in the environment as well."""
    return [argument for argument in arguments if not argument.startswith("--local_rank")]


if __name__ == "__main__":
    sys.exit(main(["evaluate", *without_launcher_flag(sys.argv[1:])]))
