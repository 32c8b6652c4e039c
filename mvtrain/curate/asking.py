"""Asking a model until its answer is good: what was wrong with one answer is told before the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from mvtrain.curate.reading import read_text
from mvtrain.curate.records import Complaint, Complaints, Rejected

Read = TypeVar("Read")
Messages = Sequence[dict[str, str]]
TOO_LONG = 20_000
"""Characters of a faulty answer that are shown to the model again."""


class Client(Protocol):
    """What answers: the client of an endpoint, or a batch of them."""

    async def ask(self, messages: list[dict[str, str]], *, stage: str, max_tokens: int, attempt: int = 0) -> Any: ...


@dataclass
class Try:
    """An answer, and what is wrong with it; nothing, if it was taken."""

    answer: str
    complaints: tuple[Complaint, ...] = ()


@dataclass
class Dialogue:
    """All questions of one record. A question has a key, such as `rewrite 1.2`, and is asked `tries` times at most."""

    client: Client
    tries: int
    max_tokens: int
    on_retry: Callable[[str], None] = lambda stage: None
    asked: dict[str, list[Try]] = field(default_factory=dict)
    """Tries of the questions that count."""
    faulty: list[tuple[str, Try]] = field(default_factory=list)
    """All faulty tries, also of questions that are forgotten."""

    async def ask(self, stage: str, key: str, messages: Messages, read: Callable[[str], Read]) -> Read:
        """The first answer that `read` takes. `read` raises Complaints, which are fed back.

        Raises Rejected when all tries are used up, with what was wrong with the last one.
        """
        tries = self.asked.setdefault(key, [])
        while True:
            faulty = [t for t in tries if t.complaints]
            if len(faulty) >= self.tries:
                raise Rejected(stage, faulty[-1].complaints)
            if faulty:
                self.on_retry(stage)
            question = [*messages, *_feedback(faulty[-1])] if faulty else list(messages)
            reply = await self.client.ask(question, stage=stage, max_tokens=self.max_tokens, attempt=len(faulty))
            try:
                read_answer = read(read_text(reply))
            except Complaints as error:
                tries.append(Try(reply.text, error.complaints))
                self.faulty.append((key, tries[-1]))
            else:
                tries.append(Try(reply.text))
                return read_answer

    def complain(self, key: str, complaints: Sequence[Complaint]) -> None:
        """The answer that was taken turns out to be faulty: the question will be asked again."""
        last = self.asked[key][-1]
        last.complaints = tuple(complaints)
        self.faulty.append((key, last))

    def forget(self, keep: Sequence[str]) -> None:
        """Begin anew with all questions but these: what they were about is another thing now."""
        self.asked = {key: tries for key, tries in self.asked.items() if key in keep}

    def log(self) -> list[dict[str, Any]]:
        """Faulty answers, in the order of the questions' keys: which ones came first depends on the network."""
        rows = [
            {"question": key, "answer": t.answer, "complaints": [[c.kind, c.text] for c in t.complaints]}
            for key, t in self.faulty
        ]
        return sorted(rows, key=lambda row: row["question"])


async def all_of(questions: Iterable[Awaitable[Read]]) -> list[Read]:
    """The answers to questions that are asked at the same time, in order.

    All of them are waited for also where one fails, so that which failure is raised does not depend on who is first:
    what ends the run before what rejects a record, else the first in order.
    """
    results = await asyncio.gather(*questions, return_exceptions=True)
    failures = [result for result in results if isinstance(result, BaseException)]
    for failure in sorted(failures, key=lambda failure: isinstance(failure, Rejected)):
        raise failure
    return results


def _feedback(last: Try) -> list[dict[str, str]]:
    faults = "\n".join(f"- {complaint}" for complaint in last.complaints)
    again = f"This answer cannot be used:\n{faults}\nAnswer the question again, in full, without these faults."
    answer = last.answer.strip()
    told = [{"role": "assistant", "content": answer[:TOO_LONG]}] if answer else []
    return [*told, {"role": "user", "content": again}]
