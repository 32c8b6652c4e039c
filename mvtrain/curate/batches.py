"""The batch API behind the same `ask`: half the price, answers within a day.

    ask -> collected -> (nobody asks anything for a while) -> a file is uploaded, a batch created -> polled -> answers

What is on its way is written down in the cache's file before the batch is created, and forgotten in the same step that
keeps its answers. So a run that was killed finds its batches again, by their id, or by a token in their metadata where
it was killed before the id came, and pays for nothing twice. One run at a time per cache file.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mvtrain.curate.answers import Answer, Completion, read_completion
from mvtrain.curate.client import Client, Question, end_tasks
from mvtrain.curate.faults import LONGEST_WAIT, EndpointRefuses, Failure, judge, read_error
from mvtrain.curate.pacing import backoff
from mvtrain.curate.spending import Reservation, Usage

GROWTH, MOST_GROWTH = 1.5, 30.0
"""Of the pauses between two looks at a batch: by step, and altogether."""
PAGES = 10
"""Pages of a hundred batches that are looked through for one whose id is not known."""
LOOK_UP = 1.0
"""Seconds after which collecting looks whether there is enough for a batch."""
ENDED = ("completed", "failed", "expired", "cancelled")
T = TypeVar("T")


@dataclass
class _Item:
    """A question that was collected, its line in the batch's file, and where its answer goes."""

    question: Question
    line: bytes
    reservation: Reservation
    outcome: asyncio.Future[Answer | Failure]


@dataclass
class _Batch:
    """Questions that are asked together, by key."""

    token: str
    questions: dict[str, dict[str, Any]] = field(default_factory=dict)
    """As they are written down: their stage, and the most tokens they can use."""
    reservations: dict[str, Reservation] = field(default_factory=dict)
    outcomes: dict[str, asyncio.Future[Answer | Failure]] = field(default_factory=dict)
    file: bytes = b""
    id: str | None = None

    def add(self, key: str, stage: str, reservation: Reservation, outcome: asyncio.Future[Answer | Failure]) -> None:
        most = reservation.most
        self.questions[key] = {"stage": stage, "most": [most.prompt_tokens, most.completion_tokens]}
        self.reservations[key], self.outcomes[key] = reservation, outcome


class BatchClient(Client):
    """`Client`, with every question in a batch. `concurrency` does not limit it: all callers should ask at once."""

    def _price_factor(self) -> float:
        return self.config.batch_discount

    async def __aenter__(self) -> BatchClient:
        """Picks up the batches of earlier runs. Raises EndpointRefuses too, where they cannot be looked for."""
        await super().__aenter__()
        self._items: list[_Item] = []
        self._expected: dict[str, asyncio.Future[Answer | Failure]] = {}
        """What batches that run will answer, by key."""
        self._batches: set[asyncio.Task[None]] = set()
        self._asked, self._last_asked = asyncio.Event(), 0.0
        self._collector = asyncio.create_task(self._collect())
        try:
            await self._pick_up()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Batches that run go on at the endpoint; the next run picks them up."""
        await end_tasks([self._collector, *self._batches])
        await super().__aexit__(*exception)

    async def _answer(self, question: Question) -> Answer:
        attempts = 0
        while True:
            outcome = await self._in_a_batch(question)
            if isinstance(outcome, Answer):
                return outcome
            attempts += 1
            self._stop_where_due(outcome)
            self._unanswered.add(question.key)
            if attempts > self.config.max_retries:
                raise self._given_up(outcome, attempts, nothing_heard=False)
            self.spending.count(question.stage, "retries")

    async def _in_a_batch(self, question: Question) -> Answer | Failure:
        self._raise_refusal()
        if question.key in self._expected:
            return await asyncio.shield(self._expected[question.key])
        reservation = await self.spending.reserve(question.stage, question.most)
        self._raise_refusal()
        item = _Item(question, _line(question), reservation, _new_future())
        self._items.append(item)
        self._last_asked = asyncio.get_running_loop().time()
        self._asked.set()
        try:
            return await asyncio.shield(item.outcome)
        except asyncio.CancelledError:
            if item in self._items:  # not sent yet; otherwise its answer is kept when it comes
                self._items.remove(item)
                reservation.unbilled()
            raise

    async def _collect(self) -> None:
        """Sends what was collected when nothing new has come for a while, or when there is enough for a batch."""
        now = asyncio.get_running_loop().time
        while True:
            await self._asked.wait()
            while len(self._items) < self.config.batch_size:
                left = self._last_asked + self.config.batch_quiet_s - now()
                if left <= 0:
                    break
                await asyncio.sleep(min(left, LOOK_UP))
            self._asked.clear()
            while self._items:
                self._start(self._taken())

    def _taken(self) -> _Batch:
        """The next batch, with as many questions as one file may hold."""
        count = size = 0
        for item in self._items[: self.config.batch_size]:
            size += len(item.line)
            if count and size > self.config.batch_bytes:
                break
            count += 1
        items, self._items = self._items[:count], self._items[count:]
        batch = _Batch(secrets.token_hex(8), file=b"".join(item.line for item in items))
        for item in items:
            batch.add(item.question.key, item.question.stage, item.reservation, item.outcome)
            self.spending.count(item.question.stage, "requests")
        return batch

    async def _pick_up(self) -> None:
        """Batches that are written down. One without an id that the endpoint does not know was never created."""
        for token, batch_id, questions in await self.cache.batches(self.endpoint.address):
            if batch_id is None:
                found = await self._insist(lambda token=token: self._look_for(token))
                if not found:
                    await self.cache.finish_batch(token, {})
                    continue
                batch_id = found["id"]
            batch = _Batch(token, id=batch_id)
            for key, question in questions.items():
                stage = question["stage"]
                batch.add(key, stage, self.spending.hold(stage, Usage(*question["most"])), _new_future())
            self._start(batch)

    def _start(self, batch: _Batch) -> None:
        self._expected.update(batch.outcomes)
        task = asyncio.create_task(self._see_through(batch))
        self._batches.add(task)
        task.add_done_callback(self._batches.discard)

    async def _see_through(self, batch: _Batch) -> None:
        """From the upload to the answers. What goes wrong is told to everyone who waits for the batch."""
        try:
            if batch.id is None:
                await self._create(batch)
            await self._finish(batch, await self._end_of(batch))
        except Exception as error:
            for key, outcome in batch.outcomes.items():
                batch.reservations[key].unbilled()  # in this run; one that goes on is counted by the run that ends it
                if not outcome.done():
                    outcome.set_exception(error)
        finally:
            for key in batch.outcomes:
                self._expected.pop(key, None)

    async def _create(self, batch: _Batch) -> None:
        name = f"mvtrain-{batch.token}.jsonl"
        uploaded = await self._insist(lambda: self.wire.upload(name, batch.file))
        batch.file = b""
        await self.cache.keep_batch(batch.token, self.endpoint.address, batch.questions)
        created = await self._insist(lambda: self._create_once(uploaded["id"], batch.token))
        batch.id = created["id"]
        await self.cache.keep_batch(batch.token, self.endpoint.address, batch.questions, batch.id)

    async def _create_once(self, file_id: str, token: str) -> dict[str, Any] | Failure:
        """Where the outcome is not known, the batch is looked for: a second one would be paid for too."""
        created = await self.wire.create_batch(file_id, token)
        if isinstance(created, Failure) and created.may_be_billed:
            return await self._insist(lambda: self._look_for(token)) or created
        return created

    async def _look_for(self, token: str) -> dict[str, Any] | Failure:
        """The batch with this token; empty where there is none."""
        after = None
        for _ in range(PAGES):
            page = await self.wire.latest_batches(after)
            if isinstance(page, Failure):
                return page
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get("mvtrain") == token:
                    return batch
            if not batches or not page.get("has_more"):
                break
            after = batches[-1]["id"]
        return {}

    async def _end_of(self, batch: _Batch) -> dict[str, Any]:
        """Waits until the endpoint has done all it will do."""
        growth = 1.0
        while True:
            await asyncio.sleep(self.config.batch_poll_s * growth)
            growth = min(growth * GROWTH, MOST_GROWTH)
            facts = await self._insist(lambda: self._look_at(batch))
            if facts.get("status") in ENDED:
                return facts

    async def _look_at(self, batch: _Batch) -> dict[str, Any] | Failure:
        """One that is not there any more has ended without an answer; otherwise it would be asked for for ever."""
        facts = await self.wire.batch(batch.id)
        if isinstance(facts, Failure) and facts.status == 404:
            return {"status": "completed"}
        return facts

    async def _finish(self, batch: _Batch, facts: dict[str, Any]) -> None:
        """Counts and keeps what has come, then answers those who wait."""
        status = facts["status"]
        outcomes = await self._outcomes(batch, facts)
        if status in ("completed", "expired"):
            outcomes = {key: outcomes.get(key) or _missing(status, batch.id) for key in batch.questions}
        answers = {key: self._settle(batch, key, outcome) for key, outcome in outcomes.items()}
        kept = {key: answer.stored() for key, answer in answers.items() if isinstance(answer, Answer)}
        dollars = sum(batch.reservations[key].cost for key in answers)
        await self.cache.finish_batch(batch.token, kept, dollars)
        for key, answer in answers.items():
            batch.outcomes[key].set_result(answer)
        if status == "failed":
            self._refuse(f"batch {batch.id} failed: {self._errors(facts)}")
        if status == "cancelled":
            self._refuse(
                f"batch {batch.id} was cancelled with {len(kept)} of {len(batch.questions)} questions answered, which "
                "are kept; start again to have the others asked"
            )

    async def _outcomes(self, batch: _Batch, facts: dict[str, Any]) -> dict[str, tuple[Any, Usage | None]]:
        """By key, from the output and the error file."""
        outcomes: dict[str, tuple[Any, Usage | None]] = {}
        for name in ("output_file_id", "error_file_id"):
            rows = await self._insist(lambda name=name: self.wire.rows(facts[name])) if facts.get(name) else []
            for row in rows:
                if row.get("custom_id") in batch.questions:
                    outcomes.setdefault(row["custom_id"], self._read(row))
        return outcomes

    def _read(self, row: dict[str, Any]) -> tuple[Completion | Failure, Usage | None]:
        """One line of either file."""
        hide, response = self.endpoint.hide, row.get("response")
        if not isinstance(response, dict):
            said = read_error(json.dumps(row), hide)
            kind = "expired" if said.code == "batch_expired" else "server error"
            return Failure(kind, said.words), None
        body, status = response.get("body"), response.get("status_code")
        if status != 200:
            return judge(status if isinstance(status, int) else 500, {}, read_error(json.dumps(body), hide)), None
        return read_completion(body if isinstance(body, dict) else {}, hide, self.endpoint.hide_key)

    def _settle(self, batch: _Batch, key: str, outcome: tuple[Any, Usage | None]) -> Answer | Failure:
        stage, reservation = batch.questions[key]["stage"], batch.reservations[key]
        said, usage = outcome
        if isinstance(said, Failure):
            self._settle_failure(stage, reservation, said, usage)
            return said
        self._note_answer(stage)
        return said.answer(reservation.answered(usage))

    async def _insist(self, call: Callable[[], Awaitable[T | Failure]]) -> T:
        """Repeats a call about batches or files. Raises EndpointRefuses after the last attempt."""
        failed = 0
        while True:
            outcome = await call()
            if not isinstance(outcome, Failure):
                return outcome
            failed += 1
            wait = outcome.wait if outcome.wait is not None else backoff(self.config.backoff_s, failed - 1)
            if outcome.then != "again" or failed > self.config.max_retries or wait > LONGEST_WAIT:
                raise EndpointRefuses(
                    f"{self.endpoint.address}: batches do not work: {outcome.words}; {self.endpoint.advice()}, and "
                    "whether it has a batch API. Batches on their way are kept: start again to pick them up"
                )
            await asyncio.sleep(wait)

    def _errors(self, facts: dict[str, Any]) -> str:
        data = (facts.get("errors") or {}).get("data") or []
        words = "; ".join(f"{error.get('message')} (line {error.get('line')})" for error in data[:3])
        return self.endpoint.hide(words) or "the endpoint does not say why"


def _line(question: Question) -> bytes:
    line = {"custom_id": question.key, "method": "POST", "url": "/v1/chat/completions", "body": question.body()}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _missing(status: str, batch_id: str | None) -> tuple[Failure, None]:
    """Of a question that is in neither file."""
    if status == "expired":
        return Failure("expired", f"batch {batch_id} ended before its turn came"), None
    return Failure("no completion", f"batch {batch_id} holds no answer to it", may_be_billed=True), None


def _new_future() -> asyncio.Future[Any]:
    """One whose exception nobody need look at."""
    future = asyncio.get_running_loop().create_future()
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
