"""What all tests share: Triton's interpreter where there is no GPU, and which tests may run side by side."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: each file stays on one worker, so that its fixtures are made once. Those of distributed/, which start
    processes of their own, share a worker, so that never more than one of them runs."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "distributed" if nodeid.startswith("tests/distributed/") else nodeid.split("::", 1)[0]

    return ByFile(config, log)
