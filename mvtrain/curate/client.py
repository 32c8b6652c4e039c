"""One question to an OpenAI-compatible endpoint, with everything that can go wrong on the way. See
docs/curate-endpoints.md.

    async with Client(ClientConfig("Qwen/Qwen3-32B", "http://localhost:8000/v1"), out / "answers.sqlite") as client:
        answer = await client.ask(messages, stage="summary", max_tokens=4096)
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mvtrain.curate.answer_cache import AnswerCache, question_key
from mvtrain.curate.answers import Answer, Completion, read_completion
from mvtrain.curate.endpoint import ClientConfig, Endpoint
from mvtrain.curate.faults import LONGEST_WAIT, EndpointRefuses, Failure, RequestFailed, SpendReached
from mvtrain.curate.pacing import Pacing, backoff
from mvtrain.curate.spending import Reservation, Spending, SpendingSnapshot, Usage, most_tokens

__all__ = [
    "Answer",
    "Client",
    "ClientConfig",
    "EndpointRefuses",
    "Question",
    "RequestFailed",
    "SpendReached",
    "Usage",
    "question_of",
]
PATIENCE_WITH_LIMITS = 20
"""A question that meets a rate limit while others are answered is repeated so many times as often as one that fails."""


@dataclass(frozen=True)
class Question:
    """A request, ready to be sent."""

    key: str
    stage: str
    parameters: dict[str, Any]
    """As the openai library takes them, `extra_body` apart from the rest."""
    most: Usage
    """What it can use at most."""

    def body(self) -> dict[str, Any]:
        """As it stands in a batch's file."""
        rest = {name: value for name, value in self.parameters.items() if name != "extra_body"}
        return {**rest, **self.parameters.get("extra_body", {})}


def question_of(
    config: ClientConfig, messages: list[dict[str, str]], stage: str, max_tokens: int, attempt: int = 0
) -> Question:
    """Raises ValueError for a max_tokens below 1, RequestFailed for text that cannot be sent."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens: expected at least 1, not {max_tokens}")
    messages = [dict(message) for message in messages]  # the caller's may grow while this one waits
    extra = dict(config.extra_body)
    content = {
        "model": config.model,
        "messages": messages,
        "temperature": config.temperature,
        "max_tokens": max_tokens,
        "extra_body": extra,
        **({"attempt": attempt} if attempt > 0 else {}),
    }
    parameters = {"model": config.model, "messages": messages, config.token_limit_field: max_tokens}
    if config.temperature is not None:
        parameters["temperature"] = config.temperature
    if extra:
        parameters["extra_body"] = extra
    try:
        most = most_tokens(messages, max_tokens, len(str(extra).encode()) if extra else 0)
    except UnicodeEncodeError as error:
        raise RequestFailed(f"a message is no valid text: {error.reason}, at {error.start}", "bad request") from None
    return Question(question_key(**content), stage, parameters, most)


class Client:
    """An async context manager.

    `spent_before`: US dollars that earlier runs have spent and the ceiling counts. The cache's file knows what runs
    with it have spent, also those that were killed; the larger of the two counts.
    """

    def __init__(self, config: ClientConfig, cache: Path | None = None, *, spent_before: float = 0.0) -> None:
        """cache: a file that is made where it is not there; None keeps answers in memory only.

        Raises:
            ValueError: the address or the key that the environment holds cannot be used.
        """
        self.config = config
        self.endpoint = Endpoint(config)
        self.spending = Spending(
            config.price_input, config.price_output, config.max_spend, spent_before, self._price_factor()
        )
        self.pacing = Pacing(config.concurrency)
        self._cache_path = cache
        self._running: dict[str, _Shared] = {}
        self._heard = 0
        """Answers so far."""
        self._unanswered: set[str] = set()
        """Questions that have failed since the last answer to anyone."""
        self._refusal: str | None = None

    async def __aenter__(self) -> Client:
        """Raises ValueError or OSError where the cache cannot be used, ImportError where openai is missing."""
        from mvtrain.curate.wire import Wire

        self.cache = AnswerCache(self._cache_path)
        try:
            self.spending.know_of(await self.cache.spent())
            self.wire = Wire(self.endpoint, self.config)
        except BaseException:
            self.cache.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Ends what is still on its way."""
        await end_tasks([shared.task for shared in self._running.values()])
        try:
            await self.wire.close()
        finally:
            self.cache.close()

    async def ask(self, messages: list[dict[str, str]], *, stage: str, max_tokens: int, attempt: int = 0) -> Answer:
        """attempt: above 0 for another answer to the same messages.

        Raises:
            RequestFailed: this question could not be answered.
            EndpointRefuses: none can be.
            SpendReached: it might cost more than is left.
            ValueError: the cache is damaged, or max_tokens below 1.
            OSError: the cache cannot be written.
        """
        question = question_of(self.config, messages, stage, max_tokens, attempt)
        shared = self._running.get(question.key)
        if shared is not None:
            return await self._second(question, shared)
        shared = self._running[question.key] = _Shared(asyncio.create_task(self._find(question)))
        shared.task.add_done_callback(lambda _: self._forget(question.key, shared))
        return await self._share(question.key, shared)

    def snapshot(self) -> SpendingSnapshot:
        """Tokens, dollars, retries and failures up to now."""
        return self.spending.snapshot()

    def _price_factor(self) -> float:
        return 1.0

    async def _second(self, question: Question, shared: _Shared) -> Answer:
        """The same was asked a moment ago."""
        answer = await self._share(question.key, shared)
        self.spending.count(question.stage, "cached")
        return replace(answer, cached=True)

    async def _share(self, key: str, shared: _Shared) -> Answer:
        """The last one to be cancelled ends the question."""
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        except asyncio.CancelledError:
            if shared.waiting == 1 and not shared.task.done():
                self._forget(key, shared)  # who asks the same now, asks anew
                await end_tasks([shared.task])
            raise
        finally:
            shared.waiting -= 1

    def _forget(self, key: str, shared: _Shared) -> None:
        if self._running.get(key) is shared:
            del self._running[key]

    async def _find(self, question: Question) -> Answer:
        stored = await self.cache.get(question.key)
        if stored is not None:
            self.spending.count(question.stage, "cached")
            return Answer.from_stored(stored)
        answer = await self._answer(question)
        await self.cache.put(question.key, answer.stored())
        return answer

    async def _answer(self, question: Question) -> Answer:
        """From the endpoint, after as many attempts as it takes."""
        attempts = failed = 0
        heard = self._heard
        while True:
            async with self.pacing.turn():
                outcome = await self._attempt(question)
            if isinstance(outcome, Answer):
                return outcome
            self._stop_where_due(outcome)
            attempts += 1
            self._unanswered.add(question.key)
            # A rate limit is no failure of this question while others get through.
            if outcome.kind != "rate limit" or self._heard == heard or attempts > self._most_attempts():
                failed += 1
            if failed > self.config.max_retries:
                raise self._given_up(outcome, attempts, nothing_heard=self._heard == heard)
            heard = self._heard
            self.spending.count(question.stage, "retries")
            await self._pause(outcome, failed)

    async def _pause(self, failure: Failure, failed: int) -> None:
        """After a rate limit for all questions, else for this one."""
        seconds = failure.wait if failure.wait is not None else backoff(self.config.backoff_s, max(0, failed - 1))
        if failure.kind == "rate limit":
            self.pacing.pause(max(seconds, self.config.backoff_s / 10))  # also where Retry-After is 0
        else:
            await asyncio.sleep(seconds)

    async def _attempt(self, question: Question) -> Answer | Failure:
        """One request, its cost reserved before and counted after."""
        self._raise_refusal()
        reservation = await self.spending.reserve(question.stage, question.most)
        try:
            if reservation.cost:
                await self.cache.keep_cost(reservation.id, reservation.cost)
            self.spending.count(question.stage, "requests")
            body = await self.wire.chat(question.parameters)
        except BaseException:
            reservation.unknown()
            raise
        most = reservation.cost
        try:
            return self._outcome(question, body, reservation)
        finally:
            if reservation.cost != most:
                self.cache.correct_cost(reservation.id, reservation.cost)

    def _outcome(
        self, question: Question, body: dict[str, Any] | Failure, reservation: Reservation
    ) -> Answer | Failure:
        """Counts what a request has cost."""
        usage = None
        outcome: Completion | Failure
        if isinstance(body, Failure):
            outcome = body
        else:
            outcome, usage = read_completion(body, self.endpoint.hide, self.endpoint.hide_key)
        if isinstance(outcome, Completion):
            self._note_answer(question.stage)
            return outcome.answer(reservation.answered(outcome.usage))
        self._settle_failure(question.stage, reservation, outcome, usage)
        return outcome

    def _note_answer(self, stage: str) -> None:
        self._heard += 1
        self._unanswered.clear()
        self.pacing.note_answer()
        self.spending.count(stage, "answers")

    def _settle_failure(self, stage: str, reservation: Reservation, failure: Failure, usage: Usage | None) -> None:
        self.spending.count_failure(stage, failure.kind)
        if usage is not None:
            reservation.answered(usage)
        elif failure.may_be_billed:
            reservation.unknown()
        else:
            reservation.unbilled()

    def _stop_where_due(self, failure: Failure) -> None:
        """Raises what ends this question at once."""
        if failure.then == "stop":
            self._refuse(f"{self.endpoint.address} refuses: {failure.words}; {self.endpoint.advice()}")
        if failure.wait is not None and failure.wait > LONGEST_WAIT:
            self._refuse(
                f"{self.endpoint.address} asks to wait for {failure.wait:.0f} s ({failure.words}), and more than "
                f"{LONGEST_WAIT:.0f} s are not waited for; start again then, all answers so far are kept"
            )
        if failure.then == "reject":
            raise RequestFailed(failure.words, failure.kind)

    def _most_attempts(self) -> int:
        return PATIENCE_WITH_LIMITS * (self.config.max_retries + 1)

    def _given_up(self, failure: Failure, attempts: int, nothing_heard: bool) -> RequestFailed:
        """What to raise after the last attempt, where it is not for all questions.

        nothing_heard: nobody was answered since the attempt before, or since the question was asked.
        """
        if failure.kind == "no connection" and nothing_heard:
            self._refuse(f"{failure.words} ({attempts} attempts); is the server running, and base_url right?")
        if len(self._unanswered) >= self.config.stop_after_failures:
            self._refuse(
                f"{len(self._unanswered)} questions in a row have failed at {self.endpoint.address}, this one with "
                f"{failure.kind} ({failure.words}); start again when it works, all answers so far are kept"
            )
        return RequestFailed(f"{failure.kind} after {attempts} attempts: {failure.words}", failure.kind)

    def _refuse(self, message: str) -> None:
        """For all questions from now on."""
        self._refusal = message
        self._raise_refusal()

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise EndpointRefuses(self._refusal)


@dataclass
class _Shared:
    """A question on its way, and how many wait for it."""

    task: asyncio.Task[Answer]
    waiting: int = 0


async def end_tasks(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancels them and waits until they are over."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
