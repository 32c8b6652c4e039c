"""How much the KV cache may hold by default."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

CPU_SHARE = 0.5
"""Of the memory that is free once the model is loaded. Pages are taken when they are written."""
CUDA_SHARE = 0.85
"""The rest is for activations. All of it is taken at once."""


def num_pages(tokens: int | None, bytes_per_token: int, page_size: int, device: torch.device) -> int:
    """Pages for `tokens` tokens, or for as many as the device has memory for.

    Raises:
        ValueError: the number of tokens is below one page, or the device has no room for one page.
    """
    if tokens is not None and tokens < page_size:
        raise ValueError(f"a KV cache of {tokens} tokens, expected at least {page_size}")
    if tokens is None:
        share = CUDA_SHARE if device.type == "cuda" else CPU_SHARE
        tokens = int(share * _free_bytes(device) / bytes_per_token)
    pages = tokens // page_size
    if pages == 0:
        raise ValueError(f"{device} has no room for a KV cache: a page needs {bytes_per_token * page_size} bytes")
    return pages


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # what files are cached in counts as free
        available = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        if available:
            return 1024 * int(available.group(1))
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not a number that this system tells
        return 4 * 2**30
