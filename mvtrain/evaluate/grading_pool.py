"""Grading in processes of its own, with a hard time-out: a formula that sympy never ends with costs one worker."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any

from mvtrain.evaluate.grading import Grade, final_answer, grade
from mvtrain.evaluate.records import Kind

TIMEOUT = 20.0
"""Seconds for one grade."""


class GradingPool:
    """Worker processes. May be used from any thread.

    Args:
        timeout: seconds after which a grade is given up and its worker replaced.
    """

    def __init__(self, num_workers: int = 1, timeout: float = TIMEOUT) -> None:
        try:
            from pebble import ProcessPool
        except ImportError:
            raise ImportError("grading needs pebble and math-verify: pip install 'mvtrain[eval]'") from None
        self.timeout = timeout
        # A fork would copy torch's threads and locks into the workers.
        self._pool = ProcessPool(max_workers=num_workers, context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.stop()
        self._pool.join()

    def submit(self, response: str, reference: str, kind: Kind = "math") -> Future[Grade]:
        """A grade that will be there; whatever goes wrong, it is one and no exception."""
        given: Future[Grade] = Future()
        answer = final_answer(response)
        if answer is None:  # most of what an untrained model writes; no need for a worker
            given.set_result(grade(response, reference, kind))
            return given
        task = self._pool.schedule(grade, args=(response, reference, kind), timeout=self.timeout)
        task.add_done_callback(lambda done: given.set_result(self._outcome(done, answer)))
        return given

    def grade_all(self, answers: Iterable[tuple[str, str, Kind]]) -> list[Grade]:
        """Grades of (response, reference, kind), in order."""
        return [future.result() for future in [self.submit(*answer) for answer in answers]]

    def _outcome(self, done: Future[Any], answer: str) -> Grade:
        if done.cancelled():
            return Grade(None, answer, "grading was stopped")
        error = done.exception()
        if error is None:
            return done.result()
        if isinstance(error, TimeoutError):
            return Grade(None, answer, f"grading took longer than {self.timeout:g} s")
        return Grade(None, answer, f"grading failed: {type(error).__name__}: {str(error)[:200]}")
