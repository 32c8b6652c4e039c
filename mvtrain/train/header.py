"""What was run: configuration, versions and machines, beside the log and in every checkpoint. No secret is in it."""

from __future__ import annotations

import os
import socket
from typing import Any

import torch

from mvtrain.provenance import versions, without_secrets
from mvtrain.train.config import TrainConfig
from mvtrain.train.processes import Ranks

HEADER_NAME = "run.json"
PACKAGES = ("torch", "transformers", "deepspeed", "flash-attn", "wandb")


def run_header(config: TrainConfig, settings: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Called by every rank; plain JSON values."""
    machines = ranks.gather((socket.gethostname(), _device_name(ranks.device)))
    return without_secrets(
        {
            **versions(PACKAGES),
            "world_size": ranks.world_size,
            "machines": [
                {"host": host, "device": device, "ranks": machines.count((host, device))}
                for host, device in dict.fromkeys(machines)
            ],
            "recipe": config.model_dump(),
            "deepspeed_config": settings,
        }
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
