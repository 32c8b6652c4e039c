"""Many questions at once: rate limits, the limit of concurrency, the same question twice, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

import pytest

pytest.importorskip("openai")

from mvtrain.curate.client import (
    Client,
    ClientConfig,
    RequestFailed,
)
from mvtrain.curate.faults import seconds_to_wait
from mvtrain.curate.pacing import Pacing
from tests.chat_server import ChatServer, Fault, Reply, child_server
from tests.curate_asking import always, ask, config, echo, environment, first, run, until

__all__ = ["environment"]


# Rate limits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 37.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:48:00 GMT"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers, seconds):
    now = 784111740.0  # Sun, 06 Nov 1994 08:49:00 GMT
    assert seconds_to_wait(headers, now) == seconds


@pytest.mark.parametrize("header", [{"Retry-After": "0.6"}, {"Retry-After-Ms": "600"}])
def test_a_rate_limit_holds_all_requests_back(header):
    with ChatServer(echo, lambda request, n: _limited_once(request, n, header)) as server:

        async def work(client):
            limited = asyncio.create_task(ask(client, "limited"))
            await until(lambda: client.pacing.paused_for > 0)
            await asyncio.gather(limited, *(ask(client, f"other {i}") for i in range(5)))

        run(server, work)
    limit, *others = server.requests
    assert len(others) == 6
    assert min(seen.began for seen in others) >= limit.ended + 0.6 - 0.01


def _limited_once(request, n, header):
    is_it = request["messages"][0]["content"] == "limited" and n == 0
    return Fault.status(429, headers=header) if is_it else None


@pytest.mark.parametrize("with_others", [True, False])
def test_a_rate_limit_is_no_failure_while_others_get_through(with_others):
    def faults(request, n):
        is_it = request["messages"][0]["content"] == "it" and n < 6
        return Fault.status(429, retry_after="0.01") if is_it else None

    async def work(client):
        it = asyncio.create_task(ask(client, "it"))

        async def ask_others(asker):
            number = 0
            while not it.done():
                number += 1
                await ask(client, f"other {asker} {number}")

        if with_others:  # several, so that one is always waiting for its turn when "it" is told to wait
            await asyncio.gather(*(ask_others(asker) for asker in range(5)))
        return await it

    with ChatServer(echo, faults) as server:
        result, _ = run(server, work, max_retries=2, concurrency=1)
    if with_others:
        assert result.text == "answer to it"
    else:
        assert isinstance(result, RequestFailed) and server.count == 3


def test_after_a_rate_limit_fewer_go_out_at_a_time_and_answers_raise_it_again():
    async def main():
        pacing = Pacing(64)
        pacing.pause(0.01)
        pacing.pause(0.01)  # of a request that met the same limit
        assert pacing.limit == 32
        for _ in range(32):
            pacing.note_answer()
        assert 32.9 < pacing.limit <= 33
        for _ in range(10_000):
            pacing.note_answer()
        assert pacing.limit == 64

    asyncio.run(main())


def test_a_turn_that_comes_in_the_moment_of_a_cancellation_goes_to_the_next():
    async def main():
        pacing = Pacing(1)

        async def take():
            async with pacing.turn():
                return "had it"

        async with pacing.turn():
            second, third = asyncio.create_task(take()), asyncio.create_task(take())
            await asyncio.sleep(0)
            assert pacing.waiting == 2
        second.cancel()  # its turn has come, but it does not know yet
        assert await asyncio.wait_for(third, 5) == "had it"
        assert second.cancelled() and pacing.in_flight == 0

    asyncio.run(main())


# Many at once


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_so_many_at_a_time_and_never_more(limit):
    with ChatServer(echo, always(Fault.hang())) as server:

        async def work(client):
            tasks = [asyncio.create_task(ask(client, str(i))) for i in range(100)]
            await until(lambda: server.most_at_once >= limit)
            await asyncio.sleep(0.2)
            assert client.pacing.in_flight == limit and client.pacing.waiting == 100 - limit
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert client.pacing.in_flight == client.pacing.waiting == 0

        assert run(server, work, concurrency=limit)[0] is None
    assert server.most_at_once == limit == server.count


def test_the_same_question_at_once_is_asked_once():
    with ChatServer(lambda request: Reply("one", delay=0.1)) as server:
        answers, snapshot = run(server, lambda client: asyncio.gather(*(ask(client, stage=f"s{i}") for i in range(10))))
    assert server.count == 1
    assert {answer.text for answer in answers} == {"one"}
    assert sorted(answer.cached for answer in answers) == [False] + [True] * 9
    assert (snapshot.total.answers, snapshot.total.cached) == (1, 9)


def test_a_failure_is_told_to_all_who_asked_the_same():
    with ChatServer(echo, always(Fault.status(400, "bad"))) as server:

        async def work(client):
            return await asyncio.gather(*(ask(client) for _ in range(3)), return_exceptions=True)

        errors, _ = run(server, work)
    assert [type(error) for error in errors] == [RequestFailed] * 3 and server.count == 1


def test_cancellation_leaves_nothing_behind():
    with ChatServer(echo, first(Fault.hang())) as server:

        async def work(client):
            before = asyncio.all_tasks()
            task = asyncio.create_task(ask(client))
            await until(lambda: server.count == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == before
            assert (client.pacing.in_flight, client.spending.reserved, client._running) == (0, 0, {})
            assert client.snapshot().total.unknown == 1
            return await ask(client)

        answer, _ = run(server, work, concurrency=1, timeout_s=60)
    assert answer.text == "answer to q"


def test_one_of_two_who_asked_the_same_may_give_up():
    with ChatServer(lambda request: Reply("ok", delay=0.3)) as server:

        async def work(client):
            tasks = [asyncio.create_task(ask(client)) for _ in range(2)]
            await until(lambda: server.count == 1)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        (cancelled, answer), _ = run(server, work)
    assert isinstance(cancelled, asyncio.CancelledError) and answer.text == "ok"
    assert server.count == 1


def test_who_asks_while_the_same_is_being_cancelled_gets_an_answer():
    with ChatServer(echo, first(Fault.hang())) as server:

        async def work(client):
            task = asyncio.create_task(ask(client))
            await until(lambda: server.count == 1)
            task.cancel()
            await asyncio.sleep(0)
            return await ask(client)

        answer, _ = run(server, work)
    assert answer.text == "answer to q"


def test_leaving_ends_what_is_on_its_way():
    with ChatServer(echo, always(Fault.hang())) as server:

        async def main():
            async with Client(config(server)) as client:
                tasks = [asyncio.create_task(ask(client, str(i))) for i in range(3)]
                await until(lambda: server.count == 3)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 3
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())


def test_own_cost_of_a_request_is_measured(tmp_path, capsys):
    """Printed with -s; that of the openai library alone is about 1.5 ms. The limit only notices a blunder."""

    async def measure(url):
        async with Client(ClientConfig("m", url), tmp_path / "cache") as client:
            await ask(client, "the first one opens connections")
            begun = time.perf_counter()
            await asyncio.gather(*(ask(client, "x" * 3000 + str(i)) for i in range(500)))
            return (time.perf_counter() - begun) / 500

    with child_server("tests.chat_server:say_ok") as url:
        live, cached = (asyncio.run(measure(url)) for _ in range(2))
    with capsys.disabled() if os.environ.get("SHOW_TIMES") else contextlib.nullcontext():
        print(f"\na request: {live * 1e3:.2f} ms live with the openai library, {cached * 1e3:.2f} ms from the cache")
    assert cached < live < 1.0
