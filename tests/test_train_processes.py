"""The end of a training process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

ABORTS_IN_TEARDOWN = """
import atexit, os
class AbortsInTeardown:
    def __del__(self, abort=os.abort):
        abort()
kept = AbortsInTeardown()
atexit.register(print, "exit functions ran")
print("trained")
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", -signal.SIGABRT),
        ("from mvtrain.train.processes import end_process; end_process()", 0),
    ],
    ids=["control", "end_process"],
)
def test_an_abort_in_the_teardown_does_not_fail_a_finished_run(ending, status):
    done = subprocess.run(
        [sys.executable, "-c", ABORTS_IN_TEARDOWN + ending], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == status, done.stderr
    if status == 0:
        assert done.stdout.splitlines() == ["trained", "exit functions ran"]
