"""Questions asked through the batch API, against a real server on the loopback network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from mvtrain.curate.answer_cache import AnswerCache
from mvtrain.curate.batches import BatchClient
from mvtrain.curate.client import Client, ClientConfig, EndpointRefuses, RequestFailed, SpendReached
from tests.chat_server import ChatServer, Fault, Reply

KEY = "sk-test-5Kq8vZ2mN7pLwX3c"
ROOT = Path(__file__).parents[1]
PRICES = {"price_input": 2.0, "price_output": 10.0}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def echo(request: dict) -> Reply:
    return Reply("answer to " + request["messages"][-1]["content"], prompt_tokens=100, completion_tokens=50)


def config(server: ChatServer, **changes) -> ClientConfig:
    quick = {"backoff_s": 0.01, "timeout_s": 10.0, "batch_quiet_s": 0.4, "batch_poll_s": 0.02}
    return ClientConfig(**{"model": "m", "base_url": server.url, **quick, **changes})


async def ask(client: Client, text: str, stage: str = "s"):
    return await client.ask([{"role": "user", "content": text}], stage=stage, max_tokens=100)


async def ask_all(client: Client, texts) -> list:
    return await asyncio.gather(*(ask(client, text) for text in texts), return_exceptions=True)


def run(server: ChatServer, work, cache: Path | None = None, **changes):
    """work(client) in a client for this server; (result, snapshot)."""

    async def main():
        async with BatchClient(config(server, **changes), cache) as client:
            return await work(client), client.snapshot()

    return asyncio.run(main())


def asked(server: ChatServer, method: str, path: str) -> int:
    return sum(seen.method == method and seen.path == path for seen in server.requests)


def names(number: int) -> list[str]:
    return [f"question {i}" for i in range(number)]


def test_one_batch_answers_all_who_wait_for_half_the_price(tmp_path):
    with ChatServer(echo) as server:
        answers, snapshot = run(server, lambda client: ask_all(client, names(20)), tmp_path / "cache", **PRICES)
        uploads = list(server.files.values())
        again, after = run(server, lambda client: ask_all(client, names(20)), tmp_path / "cache", **PRICES)
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(20)]
    assert [answer.text for answer in again] == [answer.text for answer in answers]
    assert all(answer.cached for answer in again) and not any(answer.cached for answer in answers)
    assert len(server.batches) == asked(server, "POST", "/v1/files") == 1 and not server.chats
    lines = [json.loads(line) for line in uploads[0].splitlines()]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", "/v1/chat/completions")}
    assert lines[3]["body"] == {
        "model": "m",
        "messages": [{"role": "user", "content": "question 3"}],
        "max_tokens": 100,
        "temperature": 0.6,
    }
    [batch] = server.batches.values()
    assert (batch.facts["endpoint"], batch.facts["completion_window"]) == ("/v1/chat/completions", "24h")
    assert (snapshot.total.requests, snapshot.total.answers) == (20, 20)
    assert snapshot.spent == pytest.approx(20 * (100 * 2 + 50 * 10) / 1e6 * 0.5) and snapshot.reserved == 0
    assert after.spent_before == pytest.approx(snapshot.spent)


def test_the_cache_is_that_of_the_ordinary_client(tmp_path):
    async def ordinary(server):
        async with Client(config(server), tmp_path / "cache") as client:
            return await ask(client, "question 0")

    with ChatServer(echo) as server:
        run(server, lambda client: ask_all(client, names(1)), tmp_path / "cache")
        assert asyncio.run(ordinary(server)).cached
    assert not server.chats


def test_extra_fields_stand_in_the_line():
    with ChatServer(echo) as server:
        run(server, lambda client: ask(client, "q"), extra_body={"top_p": 0.5}, temperature=None)
        [body] = [json.loads(line)["body"] for line in server.files["file-0"].splitlines()]
    assert body["top_p"] == 0.5 and "extra_body" not in body and "temperature" not in body


@pytest.mark.parametrize(("limit", "most"), [({"batch_size": 10}, 10), ({"batch_bytes": 1}, 1), ({}, 25)])
def test_a_batch_is_no_larger_than_it_may_be(limit, most):
    """It may be smaller: a busy machine takes its time between two questions."""
    with ChatServer(echo) as server:
        answers, _ = run(server, lambda client: ask_all(client, names(25)), **limit)
        sizes = [len(batch.lines) for batch in server.batches.values()]
    assert sum(sizes) == 25 and max(sizes) <= most and len(sizes) >= -(-25 // most)
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(25)]


def test_questions_that_follow_from_answers_make_the_next_batch():
    with ChatServer(echo) as server:

        async def record(client, name):
            first = await ask(client, name)
            return (await ask(client, first.text)).text

        texts, _ = run(server, lambda client: asyncio.gather(*(record(client, name) for name in names(5))))
        sizes = [len(batch.lines) for batch in server.batches.values()]
    assert sum(sizes) == 10 and 2 <= len(sizes) < 10, "those of a round together"
    assert texts == [f"answer to answer to {name}" for name in names(5)]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault.status(500, "overloaded"), "server error"),
        (Fault.status(429, "slow down"), "rate limit"),
        (Fault.drop(), "no completion"),
    ],
)
def test_lines_that_fail_are_asked_again(fault, kind):
    def faults(request, n):
        return fault if request["messages"][0]["content"] == "question 3" and n < 2 else None

    with ChatServer(echo, faults) as server:
        answers, snapshot = run(server, lambda client: ask_all(client, names(6)), max_retries=2)
        assert [len(batch.lines) for batch in server.batches.values()] == [6, 1, 1]
    assert answers[3].text == "answer to question 3"
    assert snapshot.total.failures == {kind: 2} and snapshot.total.retries == 2


def test_a_line_that_goes_on_failing_fails_alone():
    def faults(request, n):
        is_it = request["messages"][0]["content"] == "question 3"
        return Fault.status(500, f"no, {KEY}") if is_it else None

    with ChatServer(echo, faults) as server:
        answers, _ = run(server, lambda client: ask_all(client, names(6)), max_retries=1)
        assert len(server.batches) == 2
    assert isinstance(answers[3], RequestFailed) and "after 2 attempts: status 500: no, ***" in str(answers[3])
    assert sum(isinstance(answer, Exception) for answer in answers) == 1


def test_a_line_that_is_wrong_is_not_asked_again():
    with ChatServer(echo, lambda request, n: Fault.status(400, "too long")) as server:
        answers, snapshot = run(server, lambda client: ask_all(client, names(2)), **PRICES)
        assert len(server.batches) == 1
    assert [type(answer) for answer in answers] == [RequestFailed] * 2
    assert snapshot.spent == 0


def test_a_batch_that_the_endpoint_does_not_take_says_why(tmp_path):
    with ChatServer(echo) as server:
        server.ends = lambda number: "failed"
        answers, snapshot = run(server, lambda client: ask_all(client, names(3)), tmp_path / "cache", **PRICES)
    assert [type(answer) for answer in answers] == [EndpointRefuses] * 3
    assert "batch batch-0 failed: line 1 is not valid (line 1)" in str(answers[0])
    assert snapshot.spent == snapshot.reserved == 0
    assert kept_batches(tmp_path / "cache") == []


def test_of_an_expired_batch_the_rest_is_asked_again():
    with ChatServer(echo) as server:
        server.ends = lambda number: "expired" if number == 0 else "completed"
        answers, snapshot = run(server, lambda client: ask_all(client, names(6)), **PRICES)
        assert [len(batch.lines) for batch in server.batches.values()] == [6, 3]
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(6)]
    assert snapshot.total.failures == {"expired": 3}
    assert snapshot.spent == pytest.approx(6 * 700e-6 / 2), "what has expired is not billed"


def test_a_line_of_an_expired_batch_that_is_in_neither_file_is_asked_again():
    def faults(request, n):
        return Fault.drop() if request["messages"][0]["content"] == "question 1" and n == 0 else None

    with ChatServer(echo, faults) as server:
        server.ends = lambda number: "expired" if number == 0 else "completed"
        answers, _ = run(server, lambda client: ask_all(client, names(6)))
        assert [len(batch.lines) for batch in server.batches.values()] == [6, 4]
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(6)]


def test_batches_that_always_expire_fail():
    with ChatServer(echo) as server:
        server.ends = lambda number: "expired"
        answers, _ = run(server, lambda client: ask_all(client, names(1)), max_retries=1)
    assert isinstance(answers[0], RequestFailed) and "expired after 2 attempts" in str(answers[0])


def test_of_a_cancelled_batch_the_answers_are_kept(tmp_path):
    with ChatServer(echo) as server:
        server.ends = lambda number: "cancelled" if number == 0 else "completed"
        answers, _ = run(server, lambda client: ask_all(client, names(6)), tmp_path / "cache")
        assert [type(answer).__name__ for answer in answers] == ["Answer"] * 3 + ["EndpointRefuses"] * 3
        assert "batch batch-0 was cancelled with 3 of 6 questions answered" in str(answers[5])
        answers, _ = run(server, lambda client: ask_all(client, names(6)), tmp_path / "cache")
        assert [len(batch.lines) for batch in server.batches.values()] == [6, 3]
    assert [answer.cached for answer in answers] == [True] * 3 + [False] * 3


def test_an_endpoint_without_batches_says_so():
    with ChatServer(echo) as server:
        server.disturb = lambda method, path, n: Fault.status(404, "no such path")
        answers, _ = run(server, lambda client: ask_all(client, names(2)))
    assert isinstance(answers[0], EndpointRefuses) and "whether it has a batch API" in str(answers[0])


@pytest.mark.parametrize(
    "fault", [Fault.status(500), Fault.drop(), Fault.status(429, retry_after="0.01"), Fault.html()]
)
def test_faults_of_uploads_polls_and_downloads_pass(fault):
    """Each call fails once, but that of the batch's creation, which has tests of its own."""

    def disturb(method, path, n):
        return fault if n == 0 and (method, path) != ("POST", "/v1/batches") else None

    with ChatServer(echo) as server:
        server.disturb = disturb
        answers, _ = run(server, lambda client: ask_all(client, names(4)))
        assert len(server.batches) == 1
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(4)]


@pytest.mark.parametrize("fault", [Fault.drop(), Fault.cut_json(), Fault.status(504), Fault.raw("{}")])
def test_a_batch_whose_id_never_arrived_is_found_and_not_created_twice(fault):
    with ChatServer(echo) as server:
        server.disturb = lambda method, path, n: fault if (method, path, n) == ("POST", "/v1/batches", 0) else None
        answers, _ = run(server, lambda client: ask_all(client, names(4)))
        assert len(server.batches) == 1
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(4)]


# Runs that end while a batch is on its way


def kept_batches(cache: Path) -> list:
    with contextlib.closing(sqlite3.connect(cache)) as database:
        return database.execute("SELECT token, batch_id FROM batches").fetchall()


ASKING = """
import asyncio, sys
from pathlib import Path
from mvtrain.curate.batches import BatchClient
from mvtrain.curate.client import ClientConfig

async def main(url, cache):
    async with BatchClient(ClientConfig("m", url, batch_quiet_s=0.1, batch_poll_s=0.02), Path(cache)) as client:
        asks = (client.ask([{"role": "user", "content": f"question {i}"}], stage="s", max_tokens=100) for i in range(6))
        await asyncio.gather(*asks)

asyncio.run(main(*sys.argv[1:]))
"""


def killed_run(server: ChatServer, cache: Path) -> None:
    """A process that is killed while it waits for its batch."""
    server.polls_per_batch = 10**9
    child = subprocess.Popen([sys.executable, "-c", ASKING, server.url, str(cache)], cwd=ROOT)
    end = time.monotonic() + 30
    while not any(batch.polls for batch in server.batches.values()):
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    server.polls_per_batch = 1 + max(batch.polls for batch in server.batches.values())


def test_the_batch_of_a_killed_run_is_picked_up(tmp_path):
    with ChatServer(echo) as server:
        killed_run(server, tmp_path / "cache")
        assert [batch_id for _, batch_id in kept_batches(tmp_path / "cache")] == ["batch-0"]
        answers, snapshot = run(server, lambda client: ask_all(client, names(7)), tmp_path / "cache", **PRICES)
        sizes = [len(batch.lines) for batch in server.batches.values()]
    assert sizes == [6, 1], "only what the first run did not ask is asked"
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(7)]
    assert snapshot.spent == pytest.approx(7 * 700e-6 / 2), "what the first run's batch has cost counts"
    assert kept_batches(tmp_path / "cache") == []


def test_answers_of_a_batch_that_nobody_asks_for_any_more_are_kept(tmp_path):
    with ChatServer(echo) as server:
        killed_run(server, tmp_path / "cache")

        async def work(client):
            while client._batches:
                await asyncio.sleep(0.01)

        run(server, work, tmp_path / "cache")
        answers, _ = run(server, lambda client: ask_all(client, names(6)), tmp_path / "cache")
    assert all(answer.cached for answer in answers)


def test_the_end_of_a_client_leaves_its_batch_to_the_next(tmp_path):
    with ChatServer(echo) as server:
        server.polls_per_batch = 10**9

        async def work(client):
            task = asyncio.create_task(ask_all(client, names(3)))
            while not any(batch.polls for batch in server.batches.values()):
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        run(server, work, tmp_path / "cache")
        server.polls_per_batch = 1 + server.batches["batch-0"].polls
        answers, _ = run(server, lambda client: ask_all(client, names(3)), tmp_path / "cache")
        assert len(server.batches) == 1
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(3)]


@pytest.mark.parametrize("created", [True, False])
def test_a_run_killed_before_the_id_came_looks_for_its_token(tmp_path, created):
    """What it has written down then is a batch without an id."""
    with ChatServer(echo) as server:
        killed_run(server, tmp_path / "cache")

        async def forget_id():
            cache = AnswerCache(tmp_path / "cache")
            [(token, _, questions)] = await cache.batches(server.url)
            await cache.keep_batch(token, server.url, questions)
            cache.close()

        asyncio.run(forget_id())
        assert [batch_id for _, batch_id in kept_batches(tmp_path / "cache")] == [None]
        if not created:
            server.batches["batch-0"].facts["metadata"] = {"mvtrain": "that of another"}
        answers, _ = run(server, lambda client: ask_all(client, names(6)), tmp_path / "cache")
        assert len(server.batches) == (1 if created else 2)
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(6)]


def test_a_batch_that_is_not_there_any_more_is_asked_anew(tmp_path):
    with ChatServer(echo) as server:
        killed_run(server, tmp_path / "cache")
        del server.batches["batch-0"]
        answers, snapshot = run(server, lambda client: ask_all(client, names(6)), tmp_path / "cache", **PRICES)
        assert [len(batch.lines) for batch in server.batches.values()] == [6]
    assert [answer.text for answer in answers] == [f"answer to {name}" for name in names(6)]
    lost = 6 * ((256 + 16 + 4 + 10) * 2 + 100 * 10) / 1e6 / 2
    assert snapshot.spent == pytest.approx(lost + 6 * 350e-6), "it may have been billed"
    assert kept_batches(tmp_path / "cache") == []


def test_a_question_that_was_given_up_before_it_was_sent_is_not_sent():
    with ChatServer(echo) as server:

        async def work(client):
            tasks = [asyncio.create_task(ask(client, name)) for name in names(3)]
            await asyncio.sleep(0.03)
            tasks[1].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        answers, snapshot = run(server, work, batch_quiet_s=0.3, **PRICES)
        assert [len(batch.lines) for batch in server.batches.values()] == [2]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert snapshot.reserved == 0


# Dollars


def test_the_ceiling_holds_in_batches_and_is_used():
    """A question may cost (287 x 2 + 100 x 10) / 1e6 / 2 = 787 millionths of a dollar, and costs 350."""
    with ChatServer(echo) as server:
        answers, snapshot = run(server, lambda client: ask_all(client, names(10)), max_spend=0.0025, **PRICES)
        sizes = [len(batch.lines) for batch in server.batches.values()]
    # 3 x 787 fit; then 1050 are spent and 1 fits; then 1400, 1 fits; then 1750 and nothing fits.
    assert sizes == [3, 1, 1]
    reached = [answer for answer in answers if isinstance(answer, SpendReached)]
    assert len(reached) == 5
    assert snapshot.spent == pytest.approx(5 * 350e-6)


def test_the_key_is_in_no_file_of_a_batch(tmp_path):
    with ChatServer(echo) as server:
        killed_run(server, tmp_path / "cache")
        files = [path.read_bytes() for path in tmp_path.iterdir()] + list(server.files.values())
    assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.requests)
    assert not any(KEY.encode() in data for data in files)
    assert not any(b"question 3" in path.read_bytes() for path in tmp_path.iterdir()), "nor are questions kept"
