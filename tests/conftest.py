"""What all tests share: Triton's interpreter where there is no GPU, and which tests run side by side."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: each file stays on one worker, so that its fixtures are made once."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        """The first worker takes the files of distributed/, whose tests start several processes, and the others take
        the rest, so that there is not always more to do than there are cores; whoever is through helps the others."""

        def _assign_work_unit(self, node) -> None:
            starts_processes = node is self.nodes[0]
            fitting = (s for s in self.workqueue if s.startswith("tests/distributed/") == starts_processes)
            self.workqueue.move_to_end(next(fitting, next(reversed(self.workqueue))), last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)
