"""What was run: configuration, versions and machines, beside the log and in every checkpoint. No secret is in it."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mvtrain import __version__
from mvtrain.train.config import TrainConfig
from mvtrain.train.processes import Ranks

HEADER_NAME = "run.json"
PACKAGES = ("torch", "transformers", "deepspeed", "flash-attn", "wandb")
SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
CREDENTIALS_IN_URL = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+(?=@)")


def run_header(config: TrainConfig, settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Called by every rank; plain JSON values."""
    machines = ranks.gather((socket.gethostname(), _device_name(ranks.device)))
    return without_secrets(
        {
            "mvtrain": __version__,
            "code": code_version(),
            "python": platform.python_version(),
            **{package: _version(package) for package in PACKAGES},
            "world_size": ranks.world_size,
            "machines": [
                {"host": host, "device": device, "ranks": machines.count((host, device))}
                for host, device in dict.fromkeys(machines)
            ],
            "recipe": config.model_dump(),
            "deepspeed_config": settings,
        }
    )


def code_version() -> str | None:
    """The git commit this package was imported from, with "+changes" where files differ; None outside of git."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def without_secrets(value: Any) -> Any:
    """The same value with every secret that the environment holds, and passwords in addresses, replaced by ***."""
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if SECRET_NAME.search(name) and len(secret) >= 6:
            value = value.replace(secret, "***")
    return CREDENTIALS_IN_URL.sub("***", value)


def _git(folder: Path, *arguments: str) -> str:
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True)
    return run.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
