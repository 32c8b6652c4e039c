"""Which processes of this machine are alive, told apart from later ones with the same number. Needs Linux's /proc."""

from __future__ import annotations

import os
from pathlib import Path


def started(pid: int) -> str | None:
    """When a process began, in ticks since the machine did: pid and this name one process for good.

    None where it has ended, also if its parent has not asked for its status yet.
    """
    fields = _stat(pid)
    if fields is None or fields[0] in "ZXx":
        return None
    return fields[19]


def parent_of(pid: int) -> int:
    """0 where there is none."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def command_of(pid: int) -> list[str]:
    """The words a process was started with; none where it is gone, or not ours to see."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def place() -> str | None:
    """What two processes share that see each other's numbers: the boot of a machine, and a namespace of processes.

    Host names would not do: containers of one machine may share a name and yet not see each other.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the third field on; the second is a name in parentheses that may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
