"""States of the random number generators of a rank, in a file that `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_random_state(folder: Path, rank: int) -> None:
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / file_name(rank))


def load_random_state(folder: Path, rank: int) -> bool:
    """Returns whether there was one: a run on more ranks than before has none for the new ones."""
    file = folder / file_name(rank)
    if not file.is_file():
        return False
    state: dict[str, Any] = torch.load(file, weights_only=True)
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True


def file_name(rank: int) -> str:
    return f"random_rank_{rank}.pt"
