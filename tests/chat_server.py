"""A chat-completions server on the loopback network that answers as a test says, and fails as a test says.

In a test (the server runs in a thread of its own, so what it saw is there to look at):

    def play(request: dict) -> str | Reply:            # the request's JSON goes in
        return "the answer to " + request["messages"][-1]["content"]

    def faults(request: dict, n: int) -> Fault | None:  # n: how often this very body was seen before
        return Fault.status(429, retry_after="0.2") if n == 0 else None

    with ChatServer(play, faults) as server:
        ...                       # server.url is the base URL: http://127.0.0.1:PORT/v1
    server.requests               # list of Seen: path, headers, body, began, ended, n
    server.most_at_once           # how many chat requests were being answered at the same time

In a process of its own, where the time it takes must not count, or where it must live on (prints its port, then
serves):

    python -m tests.chat_server --port 0 --play MODULE:FUNCTION [--faults MODULE:FUNCTION]

or `with child_server("MODULE:FUNCTION") as url`. `play` and `faults` run on the server's only thread: a `Reply` with a
`delay` waits without holding up others, `time.sleep` does not. `GET /v1/models` lists one model.

Files and batches: `POST /v1/files`, `POST /v1/batches`, `GET /v1/batches[/ID]`, `GET /v1/files/ID/content`. Every line
of a batch is answered by `play` and `faults` as if it were a request; a fault with a status becomes a line of the
error file, any other is left out of both. A batch ends at its `server.polls_per_batch`-th poll, with the status that
`server.ends(number of the batch)` returns: "completed", "failed", "expired" or "cancelled"; of the last two, only the
first half is answered. `server.disturb(method, path, n)` may return a Fault for the n-th call of these paths (from 0);
it happens after what was asked for is done, so that a batch may be created whose id never arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chat_batches import BatchApi
from tests.chat_replies import Fault, Faults, Play, Reply, Seen, completion

__all__ = ["ChatServer", "Fault", "Reply", "Seen", "child_server"]


class _Closed(Exception):
    """The connection is to be closed."""


class ChatServer(BatchApi):
    """A context manager; see the top of the file. `forget=True` keeps no requests, for long measurements."""

    def __init__(self, play: Play, faults: Faults | None = None, port: int = 0, forget: bool = False) -> None:
        super().__init__(play, faults)
        self.forget = forget
        self.requests: list[Seen] = []
        self.most_at_once = 0
        self.disturb: Callable[[str, str, int], Fault | None] = lambda method, path, n: None
        self._port, self._at_once = port, 0
        self._calls: Counter[tuple[str, str]] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="chat server", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def chats(self) -> list[Seen]:
        """The chat requests only."""
        return [seen for seen in self.requests if seen.path.startswith("/v1/chat/completions")]

    def __enter__(self) -> ChatServer:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the chat server has not started")
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)

    def serve_forever(self) -> None:
        """Prints the port, then serves until the process ends."""
        with self:
            print(self._port, flush=True)
            self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        self._connections: set[asyncio.Task] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port, backlog=1024, limit=1 << 20)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopped.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._connections.add(task)
        try:
            while True:
                await self._request(reader, writer)
        except (_Closed, asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        n = self._times_seen[body]
        self._times_seen[body] += 1
        is_json = headers.get("content-type", "").startswith("application/json")
        seen = Seen(method, path, headers, json.loads(body) if is_json and body else body, n)
        if not self.forget:
            self.requests.append(seen)
        if path.startswith("/v1/chat/completions"):
            await self._chat(seen, reader, writer)
        else:
            done = self.other(seen)
            calls = self._calls[method, path] = self._calls[method, path] + 1
            fault = self.disturb(method, path, calls - 1)
            if fault is None:
                _send(writer, *done)
            else:
                await self._fail(fault, b"{}", reader, writer)
        await writer.drain()
        seen.ended = time.monotonic()

    async def _chat(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            fault = self.faults(seen.body, seen.n) if self.faults else None
            reply = fault if fault is not None else self.play(seen.body)
            if isinstance(reply, Fault):
                whole = json.dumps(completion(seen.body, Reply("this will never arrive as a whole"))).encode()
                await self._fail(reply, whole, reader, writer)
                return
            reply = Reply(reply) if isinstance(reply, str) else reply
            if reply.delay:
                await asyncio.sleep(reply.delay)
            _send(writer, 200, json.dumps(completion(seen.body, reply)).encode())
        finally:
            self._at_once -= 1

    async def _fail(
        self, fault: Fault, whole: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if fault.kind == "status":
            _send(writer, fault.code, fault.body.encode(), dict(fault.headers))
        elif fault.kind == "cut_json":
            _send(writer, 200, whole[: len(whole) // 2])
        elif fault.kind == "drop":
            raise _Closed
        elif fault.kind == "drop_in_body":
            _send(writer, 200, whole[: len(whole) // 2], length=len(whole))
            await writer.drain()
            await asyncio.sleep(0.01)
            raise _Closed
        elif fault.kind == "hang":
            await reader.read()  # until the other side has had enough
            raise _Closed
        elif fault.kind == "trickle":
            _send(writer, 200, b"", length=1 << 20)
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(fault.pause)
            raise _Closed


@contextlib.contextmanager
def child_server(play: str, faults: str = "") -> Iterator[str]:
    """The base URL of a server in a process of its own; both arguments are MODULE:FUNCTION, importable from here."""
    command = [sys.executable, "-m", "tests.chat_server", "--play", play, *(["--faults", faults] if faults else [])]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as child:
        try:
            yield f"http://127.0.0.1:{int(child.stdout.readline())}/v1"
        finally:
            child.kill()


def say_ok(request: dict[str, Any]) -> str:
    """The simplest model."""
    return "ok"


def _send(
    writer: asyncio.StreamWriter, code: int, body: bytes, headers: dict | None = None, length: int | None = None
) -> None:
    all_headers = {"Content-Type": "application/json", "Content-Length": len(body) if length is None else length}
    lines = "".join(f"{name}: {value}\r\n" for name, value in {**all_headers, **(headers or {})}.items())
    writer.write(f"HTTP/1.1 {code} Said\r\n{lines}\r\n".encode() + body)


def _imported(name: str) -> Callable:
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--play", required=True, help="MODULE:FUNCTION, from a request to a text or a Reply")
    parser.add_argument("--faults", help="MODULE:FUNCTION, from a request and how often it came to a Fault or None")
    options = parser.parse_args()
    faults = _imported(options.faults) if options.faults else None
    ChatServer(_imported(options.play), faults, options.port, forget=True).serve_forever()


if __name__ == "__main__":
    main()
