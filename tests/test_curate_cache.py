"""Answers on disk: what makes a question the same, kills, several processes, and damage."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openai")

from mvtrain.curate.answer_cache import AnswerCache
from mvtrain.curate.client import (
    RequestFailed,
)
from tests.chat_server import ChatServer, Fault, Reply
from tests.curate_asking import ROOT, ask, echo, environment, first, run

__all__ = ["environment"]


def test_an_answer_is_asked_for_once_and_everything_that_decides_it_counts(tmp_path):
    with ChatServer(echo) as server:
        variants = [
            ({}, {}),
            ({"model": "other"}, {}),
            ({"temperature": 0.0}, {}),
            ({"temperature": None}, {}),
            ({"extra_body": {"seed": 1}}, {}),
            ({}, {"max_tokens": 101}),
            ({}, {"attempt": 1}),
            ({}, {"attempt": 2}),
            ({}, {"text": "other"}),
        ]
        for round_ in range(2):
            for changes, asked in variants:
                cache = tmp_path / "cache"
                answer, _ = run(server, lambda client, asked=asked: ask(client, **asked), cache, **changes)
                assert answer.cached == (round_ == 1)
        assert server.count == len(variants)
        # What does not decide it: how it is sent, and the order of a message's fields.
        run(server, ask, tmp_path / "cache", concurrency=3, token_limit_field="max_completion_tokens", max_retries=1)
        turned = [{"content": "q", "role": "user"}]
        run(server, lambda client: client.ask(turned, stage="t", max_tokens=100), tmp_path / "cache")
    assert server.count == len(variants)


def test_another_address_does_not_make_another_question(tmp_path, monkeypatch):
    """Neither credentials and a query in it, nor the same model on another port."""
    with ChatServer(echo) as server, ChatServer(echo) as moved:
        for address in (
            server.url,
            server.url.replace("//", "//me:secret-word@"),
            server.url + "/?key=abcdefgh",
            moved.url,
        ):
            monkeypatch.setenv("OPENAI_BASE_URL", address)
            answer, _ = run(server, ask, tmp_path / "cache", base_url=None)
            assert answer.text == "answer to q"
    assert (server.count, moved.count) == (1, 0)


def test_errors_are_not_kept(tmp_path):
    with ChatServer(echo, first(Fault.status(400, "bad"))) as server:
        assert isinstance(run(server, ask, tmp_path / "cache")[0], RequestFailed)
        assert run(server, ask, tmp_path / "cache")[0].text == "answer to q"


ASKING = """
import asyncio, sys
from pathlib import Path
from mvtrain.curate.client import Client, ClientConfig

async def main(url, cache, start, count):
    async with Client(ClientConfig("m", url, concurrency=8), Path(cache)) as client:
        async def one(number):
            message = {"role": "user", "content": f"question {number}"}
            answer = await client.ask([message], stage="s", max_tokens=50)
            print(number, answer.text, flush=True)
        await asyncio.gather(*(one(number) for number in range(start, start + count)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""


def start_asking(url: str, cache: Path, start: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", ASKING, url, str(cache), str(start), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_killed_at_any_moment_no_answer_is_lost(tmp_path):
    """Every answer that a process had before it was killed is there for the next one."""
    had: dict[int, str] = {}
    numbers = random.Random(0)
    with ChatServer(lambda request: Reply(f"{random.random()}", delay=0.01)) as server:
        for _ in range(5):
            child = start_asking(server.url, tmp_path / "cache", 0, 2000)
            stop_after = numbers.randrange(1, 200)
            for _ in range(stop_after):
                number, text = child.stdout.readline().split()
                assert had.setdefault(int(number), text) == text, "it was asked for twice"
            os.kill(child.pid, signal.SIGKILL)
            for line in child.stdout:
                if line.endswith("\n"):
                    number, text = line.split()
                    assert had.setdefault(int(number), text) == text
            child.wait()
            child.stdout.close()
        assert len(had) > 5
        asked = server.count

        async def work(client):
            return await asyncio.gather(*(ask(client, f"question {n}", max_tokens=50) for n in had))

        answers, _ = run(server, work, tmp_path / "cache")
    assert [answer.text for answer in answers] == list(had.values())
    assert server.count == asked
    with contextlib.closing(sqlite3.connect(tmp_path / "cache")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_two_processes_at_once_share_a_file(tmp_path):
    with ChatServer(lambda request: Reply(f"{random.random()}")) as server:
        children = [start_asking(server.url, tmp_path / "cache", start, 300) for start in (0, 100)]
        lines = [child.communicate(timeout=50)[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert [len(one) for one in lines] == [300, 300]
    with contextlib.closing(sqlite3.connect(tmp_path / "cache")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("SELECT count(*) FROM answers").fetchone() == (400,)


def test_a_damaged_file_says_what_to_do(tmp_path):
    (tmp_path / "cache").write_bytes(random.Random(0).randbytes(8192))
    with pytest.raises(ValueError, match=r"cache: the answer cache is damaged .*Move it away"):
        AnswerCache(tmp_path / "cache")


def test_an_answer_that_has_changed_on_disk_is_noticed(tmp_path):
    with ChatServer(lambda request: "the answer is forty-two") as server:
        run(server, ask, tmp_path / "cache")
        data = (tmp_path / "cache").read_bytes()
        assert data.count(b"forty-two") == 1
        (tmp_path / "cache").write_bytes(data.replace(b"forty-two", b"forty-six"))
        error, _ = run(server, ask, tmp_path / "cache")
    assert isinstance(error, ValueError) and "not as it was written" in str(error)


def test_a_page_that_is_damaged_is_noticed(tmp_path):
    with ChatServer(lambda request: "x" * 3000) as server:

        async def many(client):
            return await asyncio.gather(*(ask(client, str(i)) for i in range(20)))

        run(server, many, tmp_path / "cache")
        data = bytearray((tmp_path / "cache").read_bytes())
        data[8192:16384] = bytes(8192)
        (tmp_path / "cache").write_bytes(data)
        error, _ = run(server, many, tmp_path / "cache")
    assert isinstance(error, ValueError) and "Move it away" in str(error)


def test_another_database_is_refused(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "cache")) as database:
        database.execute("CREATE TABLE things (x)")
    with pytest.raises(ValueError, match="no answer cache"):
        AnswerCache(tmp_path / "cache")


def test_a_full_disk_is_no_damage(tmp_path):
    async def main():
        cache = AnswerCache(tmp_path / "cache")
        try:
            await cache._run(cache._database.execute, "PRAGMA max_page_count=10")
            for number in range(100):
                await cache.put(str(number), {"text": "x" * 5000})
        finally:
            cache.close()

    with pytest.raises(OSError, match=r"cache: the answers cannot be kept there: .*full"):
        asyncio.run(main())
