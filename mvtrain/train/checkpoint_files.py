"""The files of a checkpoint: made durable, listed with checksums, and checked again before they are trusted."""

from __future__ import annotations

import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

STATE_NAME = "trainer.json"
"""What the trainer knows of a checkpoint, with sizes and checksums of its files. Written last."""

_RANK_IN_NAME = re.compile(r"(?:zero_pp_rank|random_rank)_(\d+)")
_BLOCK = 1 << 22

MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that say that a file is not there. Others, such as lacking permission, may be gone tomorrow."""


def files_of_rank(folder: Path, rank: int) -> list[Path]:
    """The files that a rank wrote: those with its number, and on the first rank all without a number."""
    return [file for file in sorted(folder.iterdir()) if file.is_file() and _owner(file.name) == rank]


def seal(files: list[Path]) -> dict[str, list[int]]:
    """Force files to disk. Returns name -> [size in bytes, CRC-32]."""
    sealed = {}
    for file in files:
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
        sealed[file.name] = measure(file)
    return sealed


def measure(file: Path) -> list[int]:
    """[size in bytes, CRC-32]."""
    checksum, size = 0, 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
    return [size, checksum]


def damage(folder: Path, files: dict[str, list[int]]) -> list[str]:
    """What is wrong with some of a checkpoint's files, one line each.

    Raises:
        OSError: one could not be read. That says nothing of what it holds.
    """
    problems = []
    for name, (size, checksum) in files.items():
        try:
            found = measure(folder / name)
        except MISSING as error:
            problems.append(f"{name}: {error.strerror}")
            continue
        if found[0] != size:
            problems.append(f"{name} has {found[0]:,} bytes, {size:,} bytes were saved")
        elif found[1] != checksum:
            problems.append(f"{name} is not what was saved (checksum)")
    return problems


def write_durably(file: Path, text: str) -> None:
    """The whole text under this name, or what was there before."""
    beside = file.with_name(file.name + ".partial")
    with beside.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems have no fsync of folders
        pass
    finally:
        os.close(descriptor)


def read_state(folder: Path) -> dict[str, Any]:
    """What `trainer.json` says.

    Raises:
        ValueError: it is not there or not whole.
        OSError: it could not be read.
    """
    try:
        state = json.loads((folder / STATE_NAME).read_text())
    except MISSING as error:
        raise ValueError(f"{folder} is no complete checkpoint: {STATE_NAME}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{folder} is no complete checkpoint: {STATE_NAME} is cut off") from None
    missing = {"step", "world_size", "zero_stage", "identity", "files"} - set(state)
    if missing:
        raise ValueError(f"{folder}: {STATE_NAME} lacks {', '.join(sorted(missing))}; it is of an older version")
    return state


def _owner(name: str) -> int:
    found = _RANK_IN_NAME.search(name)
    return int(found[1]) if found else 0
