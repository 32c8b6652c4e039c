"""How much memory this process did need."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB: peak resident memory of this process, and peak of the CUDA allocator where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts KiB on Linux
    peak: dict[str, Any] = {"rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    if device.type == "cuda":
        peak["cuda_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return {key: round(value, 3) for key, value in peak.items()}
