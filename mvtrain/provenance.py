"""Where a result comes from: versions of the code and of what it runs on. No secret gets into it. Standard library."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mvtrain import __version__

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
CREDENTIALS_IN_URL = re.compile(r"(?<=://)(?:[^/\s]*?:\S*|[^/\s]+)(?=@)")
"""A user, or a user and a password, before the last @. Passwords may contain / and @, so with a colon before the first
slash everything up to the last @ is taken for one, even where it is a port: rather hide too much."""


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Of mvtrain, its git commit, Python and the given packages; None for what is not installed."""
    found = {"mvtrain": __version__, "code": code_version(), "python": platform.python_version()}
    return {**found, **{package: _version(package) for package in packages}}


def code_version() -> str | None:
    """The git commit this package was imported from, with "+changes" where files differ; None outside of git."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def without_secrets(value: Any) -> Any:
    """The same value with *** for every secret that the environment holds, and for credentials in addresses."""
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if not isinstance(value, str):
        return value
    secrets = [secret for name, secret in os.environ.items() if SECRET_NAME.search(name) and len(secret) >= 6]
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the beginning of another
        value = value.replace(secret, "***")
    return CREDENTIALS_IN_URL.sub("***", value)


SAMPLE = 1 << 16
"""Bytes read at each of a file's sampled places."""


def sampled_digest(files: Iterable[Path]) -> str:
    """SHA-256 of names, sizes and nine sampled places of every file, by name: seconds also for 60 GB of weights."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for part in range(9):
                stream.seek(max(0, (size - SAMPLE) * part // 8))
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()


def processor() -> str:
    """The name of the CPU and its number of cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
