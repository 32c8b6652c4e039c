"""The engine for asyncio: streams of events that share one batch, whoever asks for them.

    async with AsyncEngine(engine) as service:
        async for event in service.stream("What is 12 * 13?", SamplingParams(n=2)):
            ...

The engine runs in a thread of its own, which sleeps while nobody asks. Only that thread touches requests.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from mvtrain.engine.completion import Completion
from mvtrain.engine.engine import Engine, Prompt
from mvtrain.engine.events import Event, Watcher
from mvtrain.engine.request import Request
from mvtrain.engine.sampling import SamplingParams


class _Stream:
    """One caller: its requests, and the queue that its events go to."""

    def __init__(self, prompt: Prompt, params: SamplingParams | None) -> None:
        self.prompt = prompt
        self.params = params
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.watchers: dict[Request, Watcher] = {}
        self.left = False
        """Whether the caller has gone."""

    def put(self, item: Event | Exception | None) -> None:
        """From the engine's thread. None says that there is nothing more to come."""
        try:
            self.loop.call_soon_threadsafe(self.queue.put_nowait, item)
        except RuntimeError:  # the caller's loop is closed
            self.left = True


class AsyncEngine:
    """Runs an engine for many callers at a time. The engine must not be used otherwise meanwhile."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._streams: list[_Stream] = []
        self._new: list[_Stream] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: Any) -> None:
        await asyncio.to_thread(self.close)

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncIterator[Event]:
        """Events of one prompt, as `Engine.stream` tells them; `event.request` counts its `params.n` answers.

        Leaving the loop, or cancelling the task, ends the requests and frees what they hold.

        Raises:
            ValueError: the prompt is empty or too long.
            RuntimeError: the service is closed.
        """
        stream = self._open(prompt, params)
        try:
            while (item := await stream.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            with self._changed:
                stream.left = True
                self._changed.notify()

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> list[Completion]:
        """All `params.n` answers to one prompt. Raises like `stream`."""
        done = {event.request: event.completion async for event in self.stream(prompt, params) if event.completion}
        return [done[index] for index in sorted(done)]

    def close(self) -> None:
        """End what runs and the thread. Streams that are open end with a RuntimeError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _open(self, prompt: Prompt, params: SamplingParams | None) -> _Stream:
        stream = _Stream(prompt, params)
        with self._changed:
            if self._closing:
                raise RuntimeError("the service is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mvtrain-engine", daemon=True)
                self._thread.start()
            self._new.append(stream)
            self._changed.notify()
        return stream

    # In the engine's thread

    def _run(self) -> None:
        with self.engine.runner.engine_attention():
            while self._wait():
                try:
                    self._turn()
                except Exception as error:  # whatever a model may raise: every caller has to hear of it
                    self._fail(error)
        self._fail(RuntimeError("the service is closed"))

    def _wait(self) -> bool:
        """Sleep while there is nothing to do; False when the service closes."""
        with self._changed:
            while not (self._closing or self._new or self._streams):
                self._changed.wait()
            new, self._new = self._new, []
        for stream in new:
            self._admit(stream)
        return not self._closing

    def _admit(self, stream: _Stream) -> None:
        self._streams.append(stream)
        try:
            requests = self.engine.add(stream.prompt, stream.params)
        except ValueError as error:
            stream.put(error)
            self._streams.remove(stream)
            return
        stream.watchers = {request: Watcher(request, index) for index, request in enumerate(requests)}

    def _turn(self) -> None:
        for stream in self._streams:
            if stream.left:
                for request in stream.watchers:
                    request.cancel()
        completions = dict(self.engine.step())
        for stream in list(self._streams):
            self._tell(stream, completions)

    def _tell(self, stream: _Stream, completions: dict[Request, Completion]) -> None:
        for request in list(stream.watchers):
            for event in stream.watchers[request].events(completions.get(request)):
                stream.put(event)
            if request in completions:
                del stream.watchers[request]
        if not stream.watchers:
            self._streams.remove(stream)
            stream.put(None)

    def _fail(self, error: Exception) -> None:
        """End all streams with an error, and leave nothing in the engine."""
        with self._changed:
            streams, self._streams, self._new = self._streams + self._new, [], []
        self.engine.scheduler.clear()
        for stream in streams:
            stream.put(error)
