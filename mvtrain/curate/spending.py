"""Tokens and dollars by stage, and a ceiling that is never exceeded.

Before a request goes out, the most it can cost is reserved: as many prompt tokens as its messages have UTF-8 bytes (no
tokenizer makes more of them) and a margin for the chat template, and all of `max_tokens`. What is spent and what is
reserved together stay below the ceiling, whatever comes back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mvtrain.curate.faults import SpendReached

MARGIN = 256
"""Tokens a chat template may add to a request: Llama's has a date, gpt-oss's a system message of about 100 tokens."""
MESSAGE_MARGIN = 16
"""Tokens it may add to a message."""
ROUNDING = 1e-9
"""Dollars that sums of floats may be off."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class StageSpending:
    """What one stage has used. `cost` is in US dollars."""

    requests: int = 0
    """Attempts sent to the endpoint, or lines of batches."""
    answers: int = 0
    cached: int = 0
    """Answered without a request."""
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    estimated: int = 0
    """Answers without usage; they count as much as they can have cost, in tokens and dollars."""
    unknown: int = 0
    """Requests whose outcome is not known; they count as much as they can have cost, in dollars only."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """By kind, each attempt."""


@dataclass(frozen=True)
class SpendingSnapshot:
    """All of it at one moment. Plain values: `asdict` and json take it."""

    stages: Mapping[str, StageSpending]
    total: StageSpending
    spent: float
    """US dollars, with those of earlier runs."""
    spent_before: float
    reserved: float
    """US dollars that requests on their way may still cost."""
    max_spend: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Reservation:
    """The most one request can cost. One of its three ends has to be called; later calls change nothing."""

    def __init__(self, spending: Spending, stage: str, most: Usage) -> None:
        self._spending, self._stage, self.most = spending, stage, most
        self.id = secrets.token_hex(8)
        self.cost = spending.cost(most)
        """US dollars: the most it can be, and in the end what is counted."""
        self._open = True

    def answered(self, usage: Usage | None) -> Usage:
        """usage None: the endpoint has not told. Returns what is counted."""
        if self._close():
            counted = usage or self.most
            self.cost = self._spending.cost(counted)
            self._spending._pay(self._stage, self.cost, counted, estimated=usage is None)
        return usage or self.most

    def unbilled(self) -> None:
        """The endpoint has done nothing for it."""
        if self._close():
            self.cost = 0.0

    def unknown(self) -> None:
        """Nobody knows what it has done: it counts with all it may have cost."""
        if self._close():
            self._spending._pay(self._stage, self.cost, None)

    def _close(self) -> bool:
        was_open, self._open = self._open, False
        if was_open:
            self._spending._free(self)
        return was_open


class Spending:
    """Of one client. `factor` is that of the price in batches."""

    def __init__(
        self,
        price_input: float | None = None,
        price_output: float | None = None,
        max_spend: float | None = None,
        spent_before: float = 0.0,
        factor: float = 1.0,
    ) -> None:
        self._prices = ((price_input or 0.0) * factor / 1e6, (price_output or 0.0) * factor / 1e6)
        self.max_spend, self.spent_before = max_spend, spent_before
        self.spent = spent_before
        self._reserved: dict[str, float] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counts: dict[str, Counter[str]] = {}
        self._failures: dict[str, Counter[str]] = {}
        self._costs: Counter[str] = Counter()

    @property
    def reserved(self) -> float:
        return sum(self._reserved.values())

    def cost(self, usage: Usage) -> float:
        """US dollars."""
        return usage.prompt_tokens * self._prices[0] + usage.completion_tokens * self._prices[1]

    async def reserve(self, stage: str, most: Usage) -> Reservation:
        """Waits while requests on their way may free what this one needs.

        Raises:
            SpendReached: there are none, and it does not fit.
        """
        while not self._fits(self.cost(most)):
            if not self._reserved:
                raise SpendReached(self._words(self.cost(most)))
            change = asyncio.get_running_loop().create_future()
            self._waiting.append(change)
            try:
                await change
            finally:
                if change in self._waiting:
                    self._waiting.remove(change)
        return self.hold(stage, most)

    def hold(self, stage: str, most: Usage) -> Reservation:
        """A reservation for what is on its way already, whether it fits or not."""
        reservation = Reservation(self, stage, most)
        self._reserved[reservation.id] = reservation.cost
        return reservation

    def count(self, stage: str, what: str) -> None:
        """One more of "requests", "answers", "cached" or "retries"."""
        self._counts.setdefault(stage, Counter())[what] += 1

    def count_failure(self, stage: str, kind: str) -> None:
        self._failures.setdefault(stage, Counter())[kind] += 1

    def know_of(self, dollars: float) -> None:
        """What earlier runs have spent, where it is more than was known."""
        more = max(0.0, dollars - self.spent_before)
        self.spent_before += more
        self.spent += more

    def snapshot(self) -> SpendingSnapshot:
        names = sorted({*self._counts, *self._failures})
        stages = {name: self._stage(name) for name in names}
        return SpendingSnapshot(
            stages, _total(stages.values()), self.spent, self.spent_before, self.reserved, self.max_spend
        )

    def _stage(self, name: str) -> StageSpending:
        counts = self._counts.get(name, Counter())
        return StageSpending(**counts, cost=self._costs[name], failures=dict(self._failures.get(name, {})))

    def _fits(self, cost: float) -> bool:
        return self.max_spend is None or self.spent + self.reserved + cost <= self.max_spend + ROUNDING

    def _words(self, cost: float) -> str:
        return (
            f"the ceiling of ${self.max_spend:g} is reached: ${self.spent:.4f} are spent, and the next request may "
            f"cost ${cost:.4f}, if its answer is as long as max_tokens allows. All answers so far are kept: raise "
            "max_spend, or lower max_tokens if that is what does not fit, and start again"
        )

    def _pay(self, stage: str, cost: float, usage: Usage | None, estimated: bool = False) -> None:
        self.spent += cost
        self._costs[stage] += cost
        counts = self._counts.setdefault(stage, Counter())
        if usage is None:
            counts["unknown"] += 1
            return
        counts["prompt_tokens"] += usage.prompt_tokens
        counts["completion_tokens"] += usage.completion_tokens
        counts["estimated"] += estimated

    def _free(self, reservation: Reservation) -> None:
        del self._reserved[reservation.id]
        waiting, self._waiting = self._waiting, deque()
        for change in waiting:
            if not change.done():
                change.set_result(None)


def most_tokens(messages: Iterable[Mapping[str, str]], max_tokens: int, extra_bytes: int = 0) -> Usage:
    """What a request can use at most. `extra_bytes`: of what else the endpoint may put into its prompt.

    Raises UnicodeEncodeError where a message cannot be sent.
    """
    prompt = MARGIN + extra_bytes
    for message in messages:
        prompt += MESSAGE_MARGIN + sum(len(str(value).encode()) for value in message.values())
    return Usage(prompt, max_tokens)


def _total(stages: Iterable[StageSpending]) -> StageSpending:
    counts: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for stage in stages:
        values = {name: value for name, value in vars(stage).items() if name != "failures"}
        counts.update(values)
        failures.update(stage.failures)
    return StageSpending(**counts, failures=dict(failures))
