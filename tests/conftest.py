"""Triton's interpreter where there is no GPU, chosen before triton is imported; runs of ranks, one at a time."""

import os

# Workers and ranks share the cores: more threads than cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs of several ranks want both cores: with `-n 2 --dist loadgroup` one worker has them all."""
    for item in items:
        if "distributed" in item.path.parts:
            item.add_marker(pytest.mark.xdist_group("ranks"))
