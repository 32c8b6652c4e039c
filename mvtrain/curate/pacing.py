"""When requests may go out: how many at the same time, and none while the endpoint wants a pause."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import AsyncIterator

LONGEST_BACKOFF = 60.0
"""Seconds."""


class Pacing:
    """Shared by all requests of a client.

    After a rate limit, half as many requests go out at a time; each answer then allows a little more, about one more
    per round, up to the concurrency that was asked for.
    """

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.limit = float(concurrency)
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._until = 0.0

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    @property
    def paused_for(self) -> float:
        """Seconds until requests may go out again."""
        return max(0.0, self._until - time.monotonic())

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Entered when a request may go out, left when it is over."""
        await self._take()
        try:
            while self.paused_for > 0:
                # Those that waited do not all start in the same moment.
                await asyncio.sleep(self.paused_for * random.uniform(1.0, 1.1))
            yield
        finally:
            self._give_back()

    def pause(self, seconds: float) -> None:
        """After a rate limit: nobody sends anything for so long."""
        if self.paused_for == 0:  # once for all the requests that met the same limit
            self.limit = max(1.0, self.limit / 2)
        self._until = max(self._until, time.monotonic() + seconds)

    def note_answer(self) -> None:
        """One more went well."""
        self.limit = min(float(self.concurrency), self.limit + 1 / self.limit)

    async def _take(self) -> None:
        if self.in_flight < int(self.limit) and not self._waiting:
            self.in_flight += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back()  # it came in the moment of the cancellation
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _give_back(self) -> None:
        self.in_flight -= 1
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)


def backoff(first: float, repetition: int) -> float:
    """Seconds before the given repetition (from 0), doubled each time, half to one and a half of it at random."""
    return min(LONGEST_BACKOFF, first * 2 ** min(repetition, 30)) * random.uniform(0.5, 1.5)
