"""Which requests run, and which of their tokens go into the next pass.

First come, first served: requests are admitted in the order in which they were added, and where the cache is full the
last one that was admitted gives its place up. It goes back to the head of the line, and its tokens go through the model
again when there is room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from mvtrain.engine.pages import Pages
from mvtrain.engine.passes import Piece
from mvtrain.engine.prefix import Prefix
from mvtrain.engine.request import Request

PREFILL = 512
"""Tokens of long prompts that go into one pass, beside what all others decode."""
HEADROOM = 64
"""Slots that must be free beyond what a request feeds at first: it would lose its place soon otherwise."""


class Scheduler:
    """Chooses what goes into a pass.

    Args:
        cache: has the `pages` that rows and slots are taken from, and `release(row)`.
        max_batch: requests that run at a time.
    """

    def __init__(self, cache, max_batch: int, prefill: int = PREFILL) -> None:
        self.cache = cache
        self.pages: Pages = cache.pages
        self.max_batch = max_batch
        self.prefill = prefill
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order of their admission
        self.prefixes: list[Prefix] = []  # that have a row of the cache
        self.num_preemptions = 0

    def add(self, request: Request) -> None:
        self.waiting.append(request)
        if request.prefix is not None:
            request.prefix.num_unfinished += 1

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def choose(self) -> list[Piece]:
        """The next pass: all that branches wait to feed, and a part of the prompts that are not through yet."""
        self._admit()
        counts: dict[Request | Prefix, int] = {}
        budget = self.prefill
        for request in list(self.running):
            if request.row is None or request.finish_reason:
                continue  # an older one took its place, or it cannot go on
            holder: Request | Prefix = request
            if request.prefix is not None and not request.prefix.ready:
                holder = request.prefix
            count = min(holder.num_pending, budget) if holder.in_prefill else holder.num_next
            if count and holder not in counts and self._make_room(request, holder, count, counts):
                counts[holder] = count
                budget -= count if holder.in_prefill else 0
        taken = [(holder.row, holder, count) for holder, count in counts.items()]
        return [piece for _, holder, count in sorted(taken, key=_by_row) for piece in _take(holder, count)]

    def collect_finished(self) -> Iterator[Request]:
        """Take finished requests out and free what they hold."""
        for request in [request for request in (*self.running, *self.waiting) if request.finish_reason]:
            (self.running if request in self.running else self.waiting).remove(request)
            self._leave(request)
            if request.prefix is not None:
                request.prefix.num_unfinished -= 1
                if not request.prefix.num_unfinished:
                    self._drop(request.prefix)
            yield request

    def clear(self) -> None:
        """Drop every request and all that is in the cache."""
        for request in self.running:
            self._leave(request)
        for prefix in list(self.prefixes):
            self._drop(prefix)
        self.waiting.clear()
        self.running.clear()

    def check_integrity(self) -> None:
        """Assert that rows and slots belong to those who run. For tests."""
        rows = [holder.row for holder in (*self.running, *self.prefixes)]
        assert len(set(rows)) == len(rows) and set(rows) == set(self.pages.rows)
        assert all(request.row is None for request in self.waiting)
        for request in self.running:
            shared = len(request.prefix.tokens) if request.prefix is not None else 0
            assert self.pages.used(request.row) == sum(branch.num_fed for branch in request.branches) - shared
        for prefix in self.prefixes:
            assert self.pages.used(prefix.row) == prefix.num_fed and prefix.num_unfinished > 0

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            request = self.waiting[0]
            prefix = request.prefix
            is_new = prefix is not None and prefix.row is None
            num_slots = request.num_pending + (len(prefix.tokens) if is_new else 0) + HEADROOM
            if self.pages.num_needed(num_slots) + is_new > self.pages.num_free - self._num_promised():
                if self._drop_idle_prefix(keep=prefix):
                    continue
                if self.running:
                    return
            if is_new:
                prefix.row = self.pages.open()
                self.prefixes.append(prefix)
            self.waiting.popleft()
            request.start(self.pages.open(None if prefix is None else prefix.row))
            self.running.append(request)

    def _num_promised(self) -> int:
        """Pages that those who run will need for what they have yet to feed."""
        return sum(self._pages_for(holder, holder.num_pending) for holder in (*self.running, *self.prefixes))

    def _make_room(self, request: Request, holder: Request | Prefix, count: int, counts: dict) -> bool:
        """Pre-empt the last ones until `count` slots are free for `holder`; says whether `request` keeps its place."""
        while self._pages_for(holder, count) + self._num_taken(counts) > self.pages.num_free:
            if self._drop_idle_prefix(keep=request.prefix):
                continue
            last = self.running[-1]
            if len(self.running) == 1:
                request.no_room(self.pages.capacity)
                return False
            counts.pop(last, None)
            self._preempt(last)
            if last is request:
                return False
        return True

    def _num_taken(self, counts: dict[Request | Prefix, int]) -> int:
        return sum(self._pages_for(holder, count) for holder, count in counts.items())

    def _pages_for(self, holder: Request | Prefix, count: int) -> int:
        used = self.pages.used(holder.row)
        return self.pages.num_needed(used + count) - self.pages.num_needed(used)

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._leave(request)
        request.preempt()
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        if request.row is not None:
            self.cache.release(request.row)
            request.row = None

    def _drop(self, prefix: Prefix) -> None:
        if prefix.row is not None:
            self.cache.release(prefix.row)
            self.prefixes.remove(prefix)
            prefix.row, prefix.num_fed = None, 0

    def _drop_idle_prefix(self, keep: Prefix | None) -> bool:
        """Forget a prompt whose requests all wait, if there is one."""
        in_use = {request.prefix for request in self.running}
        for prefix in self.prefixes:
            if prefix is not keep and prefix not in in_use:
                self._drop(prefix)
                return True
        return False


def _by_row(entry: tuple) -> int:
    return entry[0]


def _take(holder: Request | Prefix, count: int) -> list[Piece]:
    if isinstance(holder, Request):
        return holder.take(count)
    start, end = holder.num_fed, holder.num_fed + count
    holder.num_fed = end
    return [Piece(holder.row, 0, start, holder.tokens[start:end], range(start, end), np.zeros(1, dtype=np.int32))]
