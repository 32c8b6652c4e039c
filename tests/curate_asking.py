"""Short ways to ask a client of the curator something in a test."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

pytest.importorskip("openai")

from mvtrain.curate.client import Client, ClientConfig
from tests.chat_server import ChatServer

KEY = "sk-test-5Kq8vZ2mN7pLwX3c"
PRICES = {"price_input": 2.0, "price_output": 10.0}
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def echo(request: dict) -> str:
    return "answer to " + request["messages"][-1]["content"]


def first(fault):
    """A plan: this fault at the first time, then none."""
    return lambda request, n: fault if n == 0 else None


def always(fault):
    return lambda request, n: fault


def config(server: ChatServer, **changes) -> ClientConfig:
    return ClientConfig(**{"model": "m", "base_url": server.url, "backoff_s": 0.01, "timeout_s": 20.0, **changes})


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def ask(client: Client, text: str = "q", stage: str = "s", max_tokens: int = 100, attempt: int = 0):
    return await client.ask(question(text), stage=stage, max_tokens=max_tokens, attempt=attempt)


def run(server: ChatServer, work, cache: Path | None = None, spent_before: float = 0.0, **changes):
    """work(client) in a client for this server; (result or exception, snapshot)."""

    async def main():
        async with Client(config(server, **changes), cache, spent_before=spent_before) as client:
            try:
                result = await work(client)
            except Exception as error:
                result = error
            return result, client.snapshot()

    return asyncio.run(main())


async def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.005)
