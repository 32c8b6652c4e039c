"""What all tests share: Triton's interpreter where there is no GPU, and which tests run side by side."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton

ALONE = "tests that start several processes"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With `-n`: each file stays on one worker, so that its fixtures are made once, and those of distributed/ share a
    worker, so that never more than one of them runs."""
    for item in items:
        group = ALONE if "distributed" in item.path.parts else str(Path(item.path).name)
        item.add_marker(pytest.mark.xdist_group(group))
