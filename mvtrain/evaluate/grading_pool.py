"""Grading in processes of its own, with a hard time-out: an answer that takes too long costs one worker."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from importlib.util import find_spec
from typing import Any

from mvtrain.evaluate.grading import Grade, final_answer, grade
from mvtrain.evaluate.records import Kind

TIMEOUT = 20.0
"""Seconds for one grade."""
_PRELOADED = ["mvtrain.evaluate.grading", "latex2sympy2_extended.latex2sympy2", "mpmath"]
_STOPPED = "grading was stopped"


class GradingPool:
    """Worker processes, started with the first grade. May be used from any thread, as a context manager.

    Leaving it waits for the grades that were asked for; leaving it by an exception gives them up.

    Args:
        num_workers: processes that grade side by side.
        timeout: seconds after which a grade is given up and its worker replaced.

    Raises:
        ImportError: pebble or math-verify is missing; the error names the extra to install.
    """

    def __init__(self, num_workers: int = 1, timeout: float = TIMEOUT) -> None:
        if find_spec("pebble") is None or find_spec("latex2sympy2_extended") is None:
            raise ImportError("grading needs pebble and math-verify: pip install 'mvtrain[eval]'")
        self.num_workers = num_workers
        self.timeout = timeout
        self._lock = threading.Lock()
        self._open: dict[Future[Grade], str] = {}
        """Grades that are not there yet, with the answers to be graded."""
        self._pools = [self._start()]
        """The last one is used; those before it broke."""
        self._is_stopped = False

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            for future in list(self._open):
                future.result()
        self.close()

    def close(self) -> None:
        """End the workers. Grades that are not there yet are None."""
        with self._lock:
            self._is_stopped = True
        for pool in self._pools:
            pool.stop()
            pool.join()
        for given, answer in list(self._open.items()):
            self._give(given, Grade(None, answer, _STOPPED))

    def submit(self, response: str, reference: str, kind: Kind = "math") -> Future[Grade]:
        """A grade that will be there; whatever goes wrong, it is one and no exception."""
        given: Future[Grade] = Future()
        given.set_running_or_notify_cancel()
        answer = final_answer(response, kind)
        if answer is None:  # most of what an untrained model writes; no need for a worker
            given.set_result(grade(response, reference, kind))
            return given
        self._open[given] = answer
        self._schedule(given, (response, reference, kind), may_retry=True)
        return given

    def grade_all(self, answers: Iterable[tuple[str, str, Kind]]) -> list[Grade]:
        """Grades of (response, reference, kind), in order."""
        return [future.result() for future in [self.submit(*answer) for answer in answers]]

    def _start(self) -> Any:
        from pebble import ProcessPool

        # A fork would copy torch's threads and locks into the workers. The fork server has neither, and loads what
        # grading needs once, so that another worker is there in milliseconds.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(_PRELOADED)
        return ProcessPool(max_workers=self.num_workers, context=context)

    def _schedule(self, given: Future[Grade], item: tuple[str, str, Kind], may_retry: bool) -> None:
        while True:
            pool = self._pools[-1]
            try:
                task = pool.schedule(grade, args=item, timeout=self.timeout)
                break
            except RuntimeError:  # pebble gives a pool up when a worker dies that had nothing to do
                if not self._replace(pool):
                    self._give(given, Grade(None, self._open.get(given), _STOPPED))
                    return
        task.add_done_callback(lambda done: self._finish(done, given, item, pool if may_retry else None))

    def _replace(self, broken: Any) -> bool:
        """Start another pool in the place of one that broke; False where grading is over."""
        with self._lock:
            if self._is_stopped:
                return False
            if self._pools[-1] is broken:
                self._pools.append(self._start())
            return True

    def _finish(self, done: Future, given: Future[Grade], item: tuple[str, str, Kind], pool: Any | None) -> None:
        """`pool` is the one to replace if it broke under the grade; None the second time."""
        error = None if done.cancelled() else done.exception()
        if isinstance(error, BrokenProcessPool) and pool is not None and self._replace(pool):
            self._schedule(given, item, may_retry=False)
            return
        self._give(given, self._outcome(done, error, self._open.get(given)))

    def _outcome(self, done: Future, error: BaseException | None, answer: str | None) -> Grade:
        if done.cancelled() or (error is not None and self._is_stopped):
            return Grade(None, answer, _STOPPED)
        if error is None:
            return done.result()
        if isinstance(error, FutureTimeoutError):
            return Grade(None, answer, f"grading took longer than {self.timeout:g} s")
        return Grade(None, answer, f"grading failed: {type(error).__name__}: {str(error)[:200]}")

    def _give(self, given: Future[Grade], result: Grade) -> None:
        if self._open.pop(given, None) is not None:
            given.set_result(result)
