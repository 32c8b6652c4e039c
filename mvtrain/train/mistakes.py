"""Telling a user's mistake that ends the run before its ranks have met.

Mostly every rank finds the same mistake, and one of them should tell it. But a file may be missing on one host only,
and then nobody else can. So a rank asks the first one: with a mistake of its own, that answers for a few seconds, at
the port where the ranks would have met. Needs no torch, as a mistyped key is told before that is imported.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

from mvtrain.launchers import Launch, is_first_rank, is_slurm_step, read_launch
from mvtrain.provenance import without_secrets

PATIENCE = 5.0
"""Seconds that the first rank answers, and that others ask: launchers start the ranks within this time."""
GREETING = b"sft: mistake "

_marks: list[socket.socket] = []


def complain(message: str, *, for_all: bool | None = None) -> None:
    """Print a mistake, without secrets, before this process ends.

    Args:
        for_all: whether all ranks have it (one tells it) or this one only. None: not known, and the ranks have not met.
    """
    text = without_secrets(message)
    launch = _launch()
    if for_all is False or (launch is not None and launch.world_size == 1):
        _print(f"sft: error: {text}")
    elif is_first_rank(os.environ):
        _print(f"sft: error: {text}")
        if for_all is None and launch is not None:
            _answer(launch, text)
    elif for_all:
        time.sleep(3)  # when this rank ends, a launcher may kill the first one before it has printed
    else:
        _complain_unless_told(launch, text)


def _complain_unless_told(launch: Launch | None, text: str) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a launcher that has seen the first rank end: nothing to add
    told = _ask(launch) if launch is not None else None
    if told != _digest(text) and _speaks_for_host(launch, text):
        rank = launch.rank if launch is not None else os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
        _print(f"sft: rank {rank} on {socket.gethostname()}: error: {text}")
    if launch is not None and told is None and not _is_watched(launch):
        _decline(launch, text)
    else:
        time.sleep(2)  # when this rank ends, a launcher may kill others that still ask or answer


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _launch() -> Launch | None:
    try:
        return read_launch(os.environ)
    except ValueError:  # may be the very mistake
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).hexdigest()[:16].encode()


def _answer(launch: Launch, text: str) -> None:
    """Tell ranks that ask what the first one has said, until all have asked."""
    deadline = time.monotonic() + PATIENCE
    asked: set[bytes] = set()
    # Where the port is torchrun's, or another program's, the others speak for themselves.
    with suppress(OSError), socket.create_server(("", launch.master_port)) as server:
        while len(asked) < launch.world_size - 1 and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            peer, _ = server.accept()
            with suppress(OSError), peer:
                peer.settimeout(1)
                peer.sendall(GREETING + _digest(text))
                asked.add(peer.recv(20))
            asked.discard(b"")  # a rank without a mistake, that only looks whether somebody is there


def _ask(launch: Launch) -> bytes | None:
    """What the first rank's mistake is, as a digest; None where it seems to have none."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        address = (launch.master_addr, launch.master_port)
        with suppress(OSError), socket.create_connection(address, timeout=1) as peer:
            said = peer.recv(100)
            if said.startswith(GREETING):
                peer.sendall(str(launch.rank).encode())
                return said.removeprefix(GREETING)
        time.sleep(0.2)
    return None


def _speaks_for_host(launch: Launch | None, text: str) -> bool:
    """Whether no other rank of this host tells the same; the kernel gives a name to one process at a time."""
    if sys.platform != "linux":
        return True
    place = f"{launch.master_addr}:{launch.master_port}" if launch is not None else "nowhere"
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0mvtrain {place} {_digest(text).decode()}")
    except OSError:
        return False
    _marks.append(mark)  # until this process ends
    return True


def _is_watched(launch: Launch) -> bool:
    """Whether a launcher ends all other ranks when this one ends."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return True
    return launch.local_size == launch.world_size and not is_slurm_step(os.environ)


def _decline(launch: Launch, text: str) -> None:
    try:
        from mvtrain.train.meeting import decline
    except ImportError:  # no torch
        return
    decline(launch, text)
