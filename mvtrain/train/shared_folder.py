"""Whether all ranks see the same: the folder that checkpoints go to, and the data and model they read.

Each check is a collective: every rank calls it, and all raise together or none does.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mvtrain.launchers import LaunchError
from mvtrain.train.meeting import show_ranks
from mvtrain.train.processes import Ranks

PATIENCE = 120.0
"""Seconds a shared file system may take to show a new file. NFS caches that a name is missing for up to 60."""


def check_shared_folder(folder: Path, ranks: Ranks, patience: float = PATIENCE) -> float:
    """What the first rank writes into `folder` must show up on all hosts, and every rank must be able to write there.

    Returns the seconds until the slowest rank saw it.

    Raises:
        LaunchError: a rank cannot write, or does not see the first rank's file within `patience` seconds.
    """
    name = ranks.gather(f".seen-by-all-ranks-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}")[0]
    token = folder / (name if ranks.is_first else f"{name}-{ranks.rank}")
    problem = _write(token, name)
    try:
        _raise_if_any(ranks, problem, f"cannot write to output_dir {folder}")
        waited = _seconds_until_seen(folder / name, name, patience)
        unseen = f"not seen within {patience:g} s" if waited is None else None
        _raise_if_any(
            ranks,
            unseen,
            f"{folder} is not shared: a file that rank 0 wrote there did not show up on other hosts; output_dir must "
            "be on storage that all hosts see under the same path",
        )
        return max(ranks.gather(waited))
    finally:
        with suppress(OSError):
            token.unlink()


def check_same_on_all_ranks(name: str, digest: str, ranks: Ranks) -> None:
    """`digest` must be equal on all ranks; `name` is what it is of, for the message ("the data").

    Raises:
        LaunchError: ranks with another value than the first one, and their hosts.
    """
    found = ranks.gather((socket.gethostname(), digest))
    others = [rank for rank, (_, value) in enumerate(found) if value != found[0][1]]
    if others:
        raise LaunchError(
            f"{name} on {show_ranks(others)} ({_hosts(found[rank][0] for rank in others)}) differs from that on rank 0 "
            f"({found[0][0]}): {_short({found[rank][1] for rank in others})} there, {_short({found[0][1]})} here; all "
            "hosts must see the same files and run the same version",
            on_all_ranks=True,
        )


def _write(token: Path, text: str) -> str | None:
    """What went wrong, if anything did."""
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.write_text(text)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _seconds_until_seen(path: Path, text: str, patience: float) -> float | None:
    began = time.monotonic()
    while True:
        waited = time.monotonic() - began
        try:
            os.listdir(path.parent)  # has a network file system look again
            if path.read_text() == text:
                return waited
        except OSError:
            pass
        if waited > patience:
            return None
        time.sleep(min(0.2, patience / 10))


def _raise_if_any(ranks: Ranks, problem: str | None, meaning: str) -> None:
    found = ranks.gather((socket.gethostname(), problem))
    bad = [rank for rank, (_, what) in enumerate(found) if what is not None]
    if bad:
        reasons = "; ".join(sorted({found[rank][1] for rank in bad}))
        raise LaunchError(
            f"{meaning}. {show_ranks(bad)} on {_hosts(found[rank][0] for rank in bad)}: {reasons}", on_all_ranks=True
        )


def _hosts(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _short(digests: set[str]) -> str:
    return ", ".join(sorted(digest if len(digest) <= 60 else digest[:12] for digest in digests))
