"""Notices that the launcher has gone, and stops as if it had passed a signal on.

`deepspeed` ends of SIGTERM at once and tells nobody: the process it has started, and that one's ranks, would train on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

from mvtrain.launchers import is_first_rank
from mvtrain.train import alive

PROGRAMS = {"deepspeed", "ds", "torchrun", "accelerate"}
MODULES = {"deepspeed.launcher.runner", "deepspeed.launcher.launch", "torch.distributed.run"}
INTERVAL = 1.0


def stop_with_launcher() -> None:
    """When a launcher above this process ends before it, send SIGTERM to ourselves. Where there is none, do nothing.

    Shells are no launchers: whoever starts a run in the background and logs out means it to go on.
    """
    above = launchers_above(os.getpid())
    if above:
        threading.Thread(target=_watch, args=(above,), name="launcher", daemon=True).start()


def launchers_above(pid: int) -> dict[int, str | None]:
    """Process number -> start of the launchers that a process descends from, as far as there is nothing in between."""
    above = {}
    while (pid := alive.parent_of(pid)) and _is_launcher(alive.command_of(pid)):
        above[pid] = alive.started(pid)
    return above


def _is_launcher(command: list[str]) -> bool:
    """`deepspeed ...`, `python /path/deepspeed ...`, or `python -u -m deepspeed.launcher.launch ...`."""
    words = command[:6]
    if any(pair in {("-m", module) for module in MODULES} for pair in pairwise(words)):
        return True
    return any(Path(word).name in PROGRAMS for word in [word for word in words if not word.startswith("-")][:2])


def _watch(above: dict[int, str | None]) -> None:
    while True:
        gone = [pid for pid, start in above.items() if alive.started(pid) != start]
        if gone:
            break
        time.sleep(INTERVAL)
    if is_first_rank(os.environ):
        with contextlib.suppress(OSError):
            print(f"sft: the launcher (process {gone[0]}) is gone; stopping", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
