"""What a client is told to do, and that the key is nowhere but in the requests."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

pytest.importorskip("openai")

from mvtrain.curate.client import (
    Client,
    ClientConfig,
)
from mvtrain.curate.endpoint import Endpoint
from tests.chat_server import ChatServer, Fault
from tests.curate_asking import KEY, ROOT, ask, config, echo, environment, run

__all__ = ["environment"]


# The configuration


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": " "}, "model"),
        ({"base_url": "localhost:8000"}, "base_url"),
        ({"base_url": "ftp://host/v1"}, "base_url"),
        ({"base_url": "http://host:99999/v1"}, "base_url"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 2.5}, "concurrency"),
        ({"concurrency": 1001}, "concurrency"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": True}, "timeout_s"),
        ({"max_retries": -1}, "max_retries"),
        ({"price_input": -1.0}, "price_input"),
        ({"price_output": "3"}, "price_output"),
        ({"price_input": 1.0, "price_output": 1.0, "max_spend": float("inf")}, "max_spend"),
        ({"max_spend": 1.0}, "max_spend"),
        ({"max_spend": 1.0, "price_input": 1.0}, "max_spend"),
        ({"extra_body": {"model": "other"}}, "extra_body"),
        ({"extra_body": {"n": 3}}, "extra_body"),
        ({"extra_body": {"a": {1, 2}}}, "extra_body"),
        ({"extra_body": [1]}, "extra_body"),
        ({"token_limit_field": "max"}, "token_limit_field"),
        ({"batch_discount": 1.5}, "batch_discount"),
    ],
)
def test_a_wrong_field_is_named(changes, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        ClientConfig(**{"model": "m", **changes})


def test_all_wrong_fields_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        ClientConfig("m", concurrency=0, max_retries=-1)
    assert "concurrency: " in str(caught.value) and "max_retries: " in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": f"https://me:{KEY}@host/v1"},
        {"base_url": f"https://{KEY}@host/v1"},
        {"base_url": f"https://host/v1?key={KEY}"},
        {"api_key_env": KEY},
    ],
)
def test_a_secret_in_the_configuration_is_refused_without_repeating_it(changes):
    with pytest.raises(ValueError) as caught:
        ClientConfig(**{"model": "m", **changes})
    assert KEY not in str(caught.value) and "environment" in str(caught.value)


def test_openai_itself_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
        Client(ClientConfig("m"))


def test_a_key_with_a_line_end_is_refused_without_repeating_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nmore")
    with pytest.raises(ValueError, match="is no key") as caught:
        Client(ClientConfig("m"))
    assert KEY not in str(caught.value)


def test_a_missing_library_names_the_extra():
    code = "import sys; sys.modules['openai'] = None; import mvtrain.curate.client\nimport mvtrain.curate.wire"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "pip install 'mvtrain[curate]'" in result.stderr


# The key is nowhere


class EchoingServer(ChatServer):
    """Sends the key back wherever it can: in errors, headers, pages and answers."""

    def __init__(self, key: str) -> None:
        super().__init__(lambda request: f"your key is {key}", self.plan)
        self.echoes = [
            Fault.status(500, f"wrong {key}!", headers={"X-Echo": f"Bearer {key}"}),
            Fault.raw(f"<html>{key}</html>", content_type="text/html"),
            Fault.status(429, f"slow down, {key[:15]}***", retry_after="0"),
            Fault.raw(json.dumps({"error": {"message": f"upstream said {key}"}})),
        ]
        self.last = Fault.status(401, f"Incorrect API key provided: {key}. Or {key[:16]}...")

    def plan(self, request, n):
        if request["messages"][0]["content"] == "answer":
            return None
        return self.echoes[n] if n < len(self.echoes) else self.last


def everything_said(server: ChatServer, folder: Path, log: list[str], **changes) -> str:
    """Logs, exceptions with tracebacks, configuration, numbers and the bytes of the cache."""
    said = log

    async def main():
        async with Client(config(server, **changes), folder / "cache") as client:
            said.append((await ask(client, "answer")).text)
            for text in ("one", "two"):
                try:
                    await ask(client, text)
                except Exception as error:
                    said.extend([str(error), repr(error), repr(vars(error)), *traceback.format_exception(error)])
                    assert error.__cause__ is None and error.__context__ is None
            said.append(repr(client.snapshot()))
            said.append(json.dumps(client.snapshot().as_dict()))

    asyncio.run(main())
    said.append(repr(config(server, **changes)) + json.dumps(dataclasses.asdict(config(server, **changes))))
    said.extend(path.read_bytes().decode("latin-1") for path in folder.iterdir())
    return "\n".join(said)


@pytest.fixture
def log():
    """Everything that any library logs, at DEBUG."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    root, handler = logging.getLogger(), Keep()
    level, names = root.level, ("openai", "httpx", "httpx2", "httpcore", "httpcore2")
    root.addHandler(handler)
    for name in ("", *names):
        logging.getLogger(name).setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)
    for name in names:
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_the_key_is_nowhere(tmp_path, log):
    with EchoingServer(KEY) as server:
        said = everything_said(server, tmp_path, log)
    assert all(seen.headers["authorization"] == f"Bearer {KEY}" for seen in server.requests), "it was sent"
    assert len(server.requests) == 6
    assert "X-Echo" in said or "x-echo" in said, "the libraries have logged what came back"
    assert "Incorrect API key provided: ***" in said and "your key is ***" in said
    assert KEY not in said and KEY[:13] not in said


def test_secrets_in_the_address_are_nowhere(tmp_path, log, monkeypatch):
    secret, password = "query-secret-1234567", "pass/word-98765"
    with EchoingServer(secret) as server:
        quoted = password.replace("/", "%2F")
        address = server.url.replace("//", f"//me:{quoted}@") + f"?key={secret}&api-version=2024-10-21"
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        said = everything_said(server, tmp_path, log, base_url=None)
    basic = base64.b64encode(f"me:{password}".encode()).decode()
    assert all(seen.headers["authorization"] == f"Basic {basic}" for seen in server.requests)
    assert all(f"key={secret}" in seen.path and "api-version=2024-10-21" in seen.path for seen in server.requests)
    assert "POST" in said and "2024-10-21" in said, "addresses are logged"
    for hidden in (secret, secret[:13], password, quoted, basic, KEY):
        assert hidden not in said


def test_the_filter_of_logs_goes_with_the_client():
    with ChatServer(echo) as server:
        run(server, ask)
    for name in ("openai", "httpx", "httpcore.http11"):
        assert not [f for f in logging.getLogger(name).filters if type(f).__name__ == "HidingFilter"]


def test_placeholders_are_not_hidden(monkeypatch):
    """Else a key of EMPTY would take that word out of every answer."""
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    endpoint = Endpoint(ClientConfig("m", "http://localhost:1/v1"))
    assert endpoint.hide("an EMPTY set") == endpoint.hide_key("an EMPTY set") == "an EMPTY set"


def test_answers_keep_what_only_looks_like_a_secret():
    with ChatServer(lambda request: "see https://user:word@host/ and sk-test-5Kq8...") as server:
        answer, _ = run(server, ask)
    assert answer.text == "see https://user:word@host/ and sk-test-5Kq8..."
