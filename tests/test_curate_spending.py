"""Tokens and dollars by stage, and a ceiling that holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

pytest.importorskip("openai")

from mvtrain.curate.client import (
    SpendReached,
    Usage,
)
from tests.chat_server import ChatServer, Fault, Reply
from tests.curate_asking import PRICES, ROOT, always, ask, echo, environment, run, until

__all__ = ["environment"]


def test_cost_by_stage():
    replies = {"a": Reply("x", prompt_tokens=1000, completion_tokens=500), "b": Reply("y", prompt_tokens=1)}
    with ChatServer(lambda request: replies[request["messages"][0]["content"]]) as server:

        async def work(client):
            await ask(client, "a", stage="summary")
            await ask(client, "b", stage="outline")
            await ask(client, "a", stage="outline")

        _, snapshot = run(server, work, **PRICES)
    assert snapshot.stages["summary"].cost == pytest.approx(0.007)  # 1000 x 2 / 1e6 + 500 x 10 / 1e6
    assert snapshot.stages["outline"].cost == pytest.approx(0.000002)
    assert snapshot.spent == snapshot.total.cost == pytest.approx(0.007002)
    assert (snapshot.total.prompt_tokens, snapshot.total.completion_tokens) == (1001, 500)
    assert (snapshot.stages["outline"].cached, snapshot.stages["outline"].requests) == (1, 1)
    assert snapshot.reserved == 0


def test_the_most_a_request_can_cost_is_worked_out_by_hand():
    """Content "Ünï" has 5 bytes, "user" 4; 16 for the message, 256 for the template: 281 of the prompt, 40 to say."""
    with ChatServer(lambda request: Reply("x", usage=False)) as server:
        answer, snapshot = run(server, lambda client: ask(client, "Ünï", max_tokens=40), **PRICES)
    assert answer.usage == Usage(281, 40) and answer.estimated
    assert snapshot.total.estimated == 1
    assert snapshot.spent == pytest.approx((281 * 2 + 40 * 10) / 1e6)


@pytest.mark.parametrize(
    ("fault", "counts"),
    [
        (Fault.status(400), False),
        (Fault.status(500), False),
        (Fault.status(429), False),
        (Fault.status(504), True),
        (Fault.drop(), True),
        (Fault.drop_in_body(), True),
        (Fault.hang(), True),
        (Fault.cut_json(), True),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else f"{value.kind}{value.code}",
)
def test_what_may_have_been_billed_counts_with_all_it_may_have_cost(fault, counts):
    with ChatServer(echo, always(fault)) as server:
        _, snapshot = run(server, ask, max_retries=0, timeout_s=1.0, **PRICES)
    most = ((256 + 16 + 4 + 1) * 2 + 100 * 10) / 1e6
    assert snapshot.spent == pytest.approx(most if counts else 0.0)
    assert snapshot.total.unknown == int(counts) and snapshot.reserved == 0


def test_an_answer_without_choices_but_with_usage_counts_with_that():
    body = {"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 20}}
    with ChatServer(echo, always(Fault.raw(json.dumps(body)))) as server:
        _, snapshot = run(server, ask, max_retries=0, **PRICES)
    assert snapshot.spent == pytest.approx(220e-6)


def test_the_ceiling_holds_and_is_used():
    """Every request may cost 0.00155 and costs 0.0001: the reservations of those on their way must not end it early."""
    most, real, ceiling = (277 * 2 + 100 * 10) / 1e6, 0.0001, 0.004
    with ChatServer(lambda request: Reply("x", prompt_tokens=0, completion_tokens=10, delay=0.002)) as server:

        async def work(client):
            async def one(number):
                answer = await ask(client, chr(97 + number))
                assert client.spending.spent + client.spending.reserved <= ceiling + 1e-9
                return answer

            return await asyncio.gather(*(one(i) for i in range(26)), return_exceptions=True)

        results, snapshot = run(server, work, max_spend=ceiling, **PRICES)
    reached = [result for result in results if isinstance(result, SpendReached)]
    answered = 26 - len(reached)
    assert reached and "$0.004" in str(reached[0]) and "max_spend" in str(reached[0])
    assert server.count == answered
    assert snapshot.spent == pytest.approx(answered * real)
    assert snapshot.spent <= ceiling < snapshot.spent + most, "it ended when one more might have exceeded it"


def test_the_ceiling_holds_whatever_goes_wrong():
    """The server counts what it may bill: all that a request allows, for every request that it did not refuse."""
    numbers, billed = random.Random(1), []

    def faults(request, n):
        fault = numbers.choice([None, Fault.drop(), Fault.cut_json(), Fault.status(500), Fault.hang(), Fault.html()])
        if fault is None or fault.code != 500:
            billed.append(sum(len(str(v)) for v in request["messages"][0].values()) * 2 + request["max_tokens"] * 10)
        return fault

    play = lambda request: Reply("x", prompt_tokens=5, completion_tokens=request["max_tokens"])  # noqa: E731
    with ChatServer(play, faults) as server:

        async def work(client):
            return await asyncio.gather(*(ask(client, str(i)) for i in range(60)), return_exceptions=True)

        results, snapshot = run(server, work, max_spend=0.05, timeout_s=0.4, concurrency=16, **PRICES)
    assert any(isinstance(result, SpendReached) for result in results)
    assert 0.02 < sum(billed) / 1e6 <= snapshot.spent <= 0.05 + 1e-9


def test_earlier_runs_count():
    with ChatServer(echo) as server:
        error, snapshot = run(server, ask, max_spend=1.0, spent_before=0.9999, **PRICES)
    assert isinstance(error, SpendReached) and server.count == 0
    assert (snapshot.spent, snapshot.spent_before) == (0.9999, 0.9999)


ASKING = """
import asyncio, sys
from pathlib import Path
from mvtrain.curate.client import Client, ClientConfig

async def main(url, cache):
    config = ClientConfig("m", url, price_input=2.0, price_output=10.0)
    async with Client(config, Path(cache)) as client:
        asks = (client.ask([{"role": "user", "content": str(i)}], stage="s", max_tokens=100) for i in range(6))
        await asyncio.gather(*asks)

asyncio.run(main(*sys.argv[1:]))
"""


def test_what_a_killed_run_has_spent_counts(tmp_path):
    """Three answers of 220 and three requests that were on their way with up to 1554 millionths of a dollar."""
    cache = tmp_path / "cache"

    def num_answers() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as database:
            return database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def faults(request, n):
        return Fault.hang() if int(request["messages"][0]["content"]) >= 3 else None

    with ChatServer(lambda request: Reply("x", prompt_tokens=10, completion_tokens=20), faults) as server:
        child = subprocess.Popen([sys.executable, "-c", ASKING, server.url, str(cache)], cwd=ROOT)
        end = time.monotonic() + 30
        while server.count < 6 or num_answers() < 3:
            assert time.monotonic() < end and child.poll() is None
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        error, snapshot = run(server, lambda client: ask(client, "9"), cache, max_spend=0.005, **PRICES)
    most = (277 * 2 + 100 * 10) / 1e6
    assert snapshot.spent_before == snapshot.spent == pytest.approx(3 * 220e-6 + 3 * most)
    assert isinstance(error, SpendReached) and server.count == 6


def test_what_is_kept_of_costs_is_what_was_counted(tmp_path):
    plan = [None, Fault.status(500), Fault.drop(), Fault.cut_json(), Fault.empty_choices(), Fault.status(400)]

    async def work(client):
        return await asyncio.gather(*(ask(client, str(i)) for i in range(6)), return_exceptions=True)

    with ChatServer(echo, lambda request, n: plan[int(request["messages"][0]["content"])]) as server:
        _, snapshot = run(server, work, tmp_path / "cache", max_retries=1, **PRICES)
        _, after = run(server, lambda client: ask(client, "0"), tmp_path / "cache", spent_before=0.001, **PRICES)
    # Two attempts each of three questions may be billed; "answer to 0" has 2 tokens.
    assert snapshot.spent == pytest.approx(6 * 1554e-6 + 20e-6)
    assert after.spent_before == pytest.approx(snapshot.spent)


def test_answers_from_the_cache_go_on_when_the_ceiling_is_reached(tmp_path):
    with ChatServer(echo) as server:
        run(server, ask, tmp_path / "cache")
        answer, _ = run(server, ask, tmp_path / "cache", max_spend=0.0, **PRICES)
    assert answer.cached


def test_who_waits_for_the_ceiling_can_be_cancelled():
    with ChatServer(echo, always(Fault.hang())) as server:

        async def work(client):
            tasks = [asyncio.create_task(ask(client, str(i))) for i in range(4)]
            await until(lambda: server.count == 1 and client.pacing.in_flight == 4)
            for task in tasks[::-1]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not client.spending._waiting and client.spending.reserved == 0

        assert run(server, work, max_spend=0.002, **PRICES)[0] is None
    assert server.count == 1
