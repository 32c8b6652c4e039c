"""Many records at a time, each from source to trace, until the input ends or something ends the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mvtrain.curate.admission import Admission
from mvtrain.curate.curator import Curator
from mvtrain.curate.faults import EndpointRefuses, SpendReached
from mvtrain.curate.journal import Journal
from mvtrain.curate.records import Done, Source


@dataclass
class Ended:
    """How a run ended. `reason` is empty where all of the input is through."""

    num_sources: int = 0
    """Rows of the input; those behind the place where the run ended are not counted."""
    num_passed_over: int = 0
    """Records that an earlier run had finished."""
    reason: str = ""


async def curate_all(
    sources: Iterable[Source],
    curator: Curator,
    journal: Journal,
    admission: Admission,
    at_once: int,
    on_done: Callable[[Done], None],
) -> Ended:
    """Work on `at_once` records at a time, or fewer where `admission` lets no more in. Sources are taken as there is
    room for them, so memory stays flat.

    At the ceiling every record goes on until its next question does not fit; an endpoint that refuses ends all at once.
    Either is the `reason`, and the journal has what is finished. Raises whatever else goes wrong, after all work has
    stopped.
    """
    ended = Ended()
    todo = _unfinished(sources, journal, ended)

    door = asyncio.Lock()

    async def work() -> None:
        while True:
            async with door:
                number, source = next(todo, (None, None))
                if number is None:
                    return
                await admission.enter(number, source)
            done = None
            try:
                if ended.reason:
                    return
                done = await curator.curate(number, source)
            except SpendReached as error:
                ended.reason = ended.reason or str(error)
                return
            finally:
                admission.leave(number, asked=done is not None and done.stage != "source")
            journal.add(done)
            on_done(done)

    workers = [asyncio.create_task(work()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    except EndpointRefuses as error:
        ended.reason = str(error)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return ended


def _unfinished(sources: Iterable[Source], journal: Journal, ended: Ended) -> Iterator[tuple[int, Source]]:
    """One iterator for all workers."""
    for number, source in enumerate(sources):
        ended.num_sources += 1
        if journal.has(number, source.digest):
            ended.num_passed_over += 1
        else:
            journal.forget_other(number, source.digest)
            yield number, source
