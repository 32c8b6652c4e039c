"""Run as one rank: meet the others, or exit with status 2 and the error. `RANK WORLD_SIZE ADDRESS PORT PATIENCE`."""

from __future__ import annotations

import os
import sys
import time

from mvtrain.launchers import Launch, LaunchError
from mvtrain.train.meeting import meet


def main() -> None:
    rank, world_size = map(int, sys.argv[1:3])
    launch = Launch(rank, world_size, rank, world_size, sys.argv[3], int(sys.argv[4]), "launcher")
    try:
        store = meet(launch, patience=float(sys.argv[5]))
        print("met" if store.check(["verdict"]) else "too early", flush=True)
        time.sleep(1)  # the store ends with the first rank
    except LaunchError as error:
        print(error, flush=True)
        os._exit(2)  # a thread may still wait for an answer


if __name__ == "__main__":
    main()
