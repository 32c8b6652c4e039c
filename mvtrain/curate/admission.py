"""Which records are begun while money is short: as many as can probably be carried to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from mvtrain.curate.records import Source

LEAST_FACTOR = 0.2
"""Of an estimate, what is counted at least: answers that are cached cost nothing, and the next record's may not be."""


@dataclass
class Admission:
    """A record waits at the door until all that are begun, and it too, are expected to fit under the ceiling.

    What a record costs is estimated, and estimates follow what records turn out to cost. Where nothing is
    begun, the next record is let in whatever it may cost. Records come in one at a time.
    """

    expected: Callable[[Source], float]
    """US dollars."""
    spent: Callable[[], float]
    """US dollars, in this run and those before it."""
    max_spend: float | None
    _begun: dict[int, float] = field(default_factory=dict)
    _finished: float = 0.0
    _factor: float = 1.0
    """What records have cost over what was expected."""
    _spent_at_start: float | None = None
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    async def enter(self, number: int, source: Source) -> None:
        if self.max_spend is None:
            return
        if self._spent_at_start is None:
            self._spent_at_start = self.spent()
        cost = self.expected(source)
        while self._begun and not self._fits(cost):
            self._left.clear()
            await self._left.wait()
        self._begun[number] = cost

    def leave(self, number: int, asked: bool = True) -> None:
        """`asked`: whether anything was; a row that is rejected before that says nothing about the cost of others."""
        cost = self._begun.pop(number, 0.0)
        if asked and cost:
            self._finished += cost
            half_way = sum(self._begun.values()) / 2
            spent = self.spent() - self._spent_at_start
            self._factor = max(LEAST_FACTOR, spent / (self._finished + half_way))
        self._left.set()

    def _fits(self, cost: float) -> bool:
        """What is begun counts in full, however much of it is paid already: too few at once finish, too many do not."""
        return self.spent() + self._factor * (sum(self._begun.values()) + cost) <= self.max_spend
