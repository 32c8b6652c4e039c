"""Run on each rank: the checks of mvtrain.train.shared_folder, as JSON on disk. `CASE OUTPUT`."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from pathlib import Path

from mvtrain.launchers import LaunchError
from mvtrain.train.processes import Ranks, end_process
from mvtrain.train.shared_folder import check_same_on_all_ranks, check_shared_folder

LAG = 2.0


def shared(folder: Path, ranks: Ranks) -> float:
    return check_shared_folder(folder / "out", ranks, patience=5)


def lagging(folder: Path, ranks: Ranks) -> float:
    """The second rank's copy of the folder receives the first one's files after a while."""
    mine = folder / f"out-{ranks.rank}"
    if not ranks.is_first:
        threading.Thread(target=_mirror, args=(folder / "out-0", mine)).start()
    return check_shared_folder(mine, ranks, patience=20)


def _mirror(source: Path, target: Path) -> None:
    time.sleep(LAG)
    for file in source.iterdir():
        shutil.copy(file, target)


def not_shared(folder: Path, ranks: Ranks) -> float:
    return check_shared_folder(folder / f"out-{ranks.rank}", ranks, patience=1)


def not_writable(folder: Path, ranks: Ranks) -> float:
    """Where the second rank's folder should be, there is a file."""
    if not ranks.is_first:
        (folder / "out-1").write_text("")
    return check_shared_folder(folder / f"out-{ranks.rank}", ranks, patience=20)


def same(folder: Path, ranks: Ranks) -> None:
    check_same_on_all_ranks("the data", "a" * 64, ranks)


def other(folder: Path, ranks: Ranks) -> None:
    check_same_on_all_ranks("the data", "ab"[ranks.rank] * 64, ranks)


def main() -> None:
    case, folder = sys.argv[1], Path(sys.argv[2])
    ranks = Ranks.from_environment()
    ranks.connect()
    try:
        result = {"returned": globals()[case](folder, ranks)}
    except LaunchError as error:
        result = {"error": str(error), "on_all_ranks": error.on_all_ranks}
    ranks.wait()  # it was left in step: the ranks can still talk
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(result))
    end_process()


if __name__ == "__main__":
    main()
