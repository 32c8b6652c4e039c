"""Which requests run, and which of their tokens go into the next pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from mvtrain.engine.branches import Branch
from mvtrain.engine.request import Request

PREFILL_CHUNK = 512
"""Tokens of a prompt that go through the model in one pass."""
SHORT_PROMPT = 64
"""A prompt with more tokens than this gets passes of its own."""
MAX_ROWS = 1024
"""Tokens that one request may add to a pass. The branches above that wait for the next one."""


class Chosen(NamedTuple):
    """`count` pending tokens of `branch`, whose request has row `row` of the cache."""

    row: int
    branch: Branch
    count: int

    @property
    def samples(self) -> bool:
        return self.branch.needs_token and self.count == len(self.branch.pending)


class Scheduler:
    """Requests wait in order; the next one gets the lowest free row of the cache."""

    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.waiting: deque[Request] = deque()
        self.running: dict[int, Request] = {}

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def admit(self) -> None:
        free = (row for row in range(self.max_batch) if row not in self.running)
        for row in list(free)[: len(self.waiting)]:
            request = self.running[row] = self.waiting.popleft()
            request.start()

    def choose(self) -> list[Chosen]:
        """The next pass, by rows: a chunk of one long prompt, or the pending tokens of all branches."""
        self.admit()
        for row, request in self.running.items():
            if request.in_prefill and len(request.root.pending) > SHORT_PROMPT:
                return [Chosen(row, request.root, min(PREFILL_CHUNK, len(request.root.pending)))]
        return [chosen for row in sorted(self.running) for chosen in _pending_of(row, self.running[row])]

    def collect_finished(self) -> Iterator[tuple[int, Request]]:
        """Take finished requests out; (row, request)."""
        for row in [row for row, request in self.running.items() if request.finish_reason]:
            yield row, self.running.pop(row)

    def clear(self) -> list[int]:
        """Drop every request; returns the rows that were in use."""
        rows = list(self.running)
        self.waiting.clear()
        self.running.clear()
        return rows


def _pending_of(row: int, request: Request) -> Iterator[Chosen]:
    """What the request feeds next. Branches that wait or are done go first: the others may see their tokens."""
    num_rows = 0
    for branch in sorted(request.live_branches(), key=lambda branch: branch.needs_token):
        count = len(branch.pending)
        if branch.needs_token and num_rows and num_rows + count > MAX_ROWS:
            return
        num_rows += count
        if count:
            yield Chosen(row, branch, count)
