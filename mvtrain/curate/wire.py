"""The official openai library, and what it raises made into `Failure`. Nothing else of the package imports it.

The library's exceptions hold the request with its key, so none of them goes any further than this file.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from mvtrain.curate.endpoint import ClientConfig, Endpoint, HidingFilter
from mvtrain.curate.faults import Failure, judge, read_error

try:
    import anyio  # openai needs it too; its time limits hold where asyncio.wait_for of Python 3.10 may lose one
    import openai
except ImportError:
    raise ImportError("the curator's client needs openai: pip install 'mvtrain[curate]'") from None

TRANSPORTS = ("httpx", "httpx2", "httpcore", "httpcore2", "anyio", "ssl", "h11")
"""Libraries below openai. Their errors are the connection's."""


class Wire:
    """Connections to one endpoint, open until `close`. No method raises for what an endpoint does; see `Failure`."""

    def __init__(self, endpoint: Endpoint, config: ClientConfig) -> None:
        self.endpoint, self.timeout_s = endpoint, config.timeout_s
        self._api = openai.AsyncOpenAI(
            api_key=endpoint.key or "none",
            base_url=endpoint.address,
            timeout=config.timeout_s,
            max_retries=0,
            default_headers=endpoint.headers,
            default_query=endpoint.query,
        )
        self._filter = HidingFilter(endpoint.hide)
        self._filter.install()

    async def close(self) -> None:
        try:
            await self._api.close()
        finally:
            self._filter.remove()

    async def chat(self, parameters: dict[str, Any]) -> dict[str, Any] | Failure:
        """The answer's JSON as it came."""
        return await self._json(lambda: self._api.chat.completions.with_raw_response.create(**parameters))

    async def upload(self, name: str, data: bytes) -> dict[str, Any] | Failure:
        """A batch's questions."""
        files = self._api.files.with_raw_response
        return await self._thing(lambda: files.create(file=(name, data), purpose="batch"))

    async def create_batch(self, file_id: str, token: str) -> dict[str, Any] | Failure:
        """`token` lets the batch be found again if its id gets lost."""
        batches = self._api.batches.with_raw_response
        return await self._thing(
            lambda: batches.create(
                input_file_id=file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={"mvtrain": token},
            )
        )

    async def batch(self, batch_id: str) -> dict[str, Any] | Failure:
        return await self._thing(lambda: self._api.batches.with_raw_response.retrieve(batch_id))

    async def latest_batches(self, after: str | None) -> dict[str, Any] | Failure:
        """A page of up to a hundred, the latest first."""
        where = {"after": after} if after else {}
        return await self._json(lambda: self._api.batches.with_raw_response.list(limit=100, **where))

    async def rows(self, file_id: str) -> list[dict[str, Any]] | Failure:
        """Of an output or error file. Lines that are no JSON are left out, unless all are: that is a gateway's page."""
        text = await self._call(lambda: self._api.files.with_raw_response.content(file_id))
        if isinstance(text, Failure):
            return text
        rows = [row for line in text.split("\n") if (row := _parsed(line)) is not None]
        if text.strip() and not rows:
            return Failure("no JSON", f"file {file_id} is no JSONL: {read_error(text, self.endpoint.hide).words}")
        return rows

    async def _thing(self, send: Callable[[], Awaitable[Any]]) -> dict[str, Any] | Failure:
        """A file or a batch: it has an id."""
        body = await self._json(send)
        if isinstance(body, Failure) or isinstance(body.get("id"), str):
            return body
        return Failure("no JSON", "the answer has no id", may_be_billed=True)

    async def _json(self, send: Callable[[], Awaitable[Any]]) -> dict[str, Any] | Failure:
        body = await self._call(send)
        if isinstance(body, Failure):
            return body
        parsed = _parsed(body)
        if parsed is None:
            words = f"the answer is no JSON object: {read_error(body, self.endpoint.hide).words}"
            return Failure("no JSON", words, may_be_billed=True)
        return parsed

    async def _call(self, send: Callable[[], Awaitable[Any]]) -> str | Failure:
        try:
            with anyio.fail_after(self.timeout_s):
                return (await send()).http_response.text
        except Exception as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        """Raises what is not the connection's or the endpoint's fault."""
        if isinstance(error, openai.APIStatusError):
            response = error.response
            said = read_error(response.text, self.endpoint.hide)
            return judge(response.status_code, response.headers, said)
        cause = type(error.__cause__ or error).__name__
        never_sent = cause in ("ConnectError", "ConnectTimeout", "PoolTimeout")
        if isinstance(error, TimeoutError | openai.APITimeoutError):
            words = f"no whole answer within {self.timeout_s:g} s"
            return Failure("time-out", words, may_be_billed=not never_sent)
        if never_sent:
            return Failure("no connection", f"no connection to {self.endpoint.address}: {self._said(error)}")
        is_transport = type(error).__module__.split(".")[0] in TRANSPORTS
        if isinstance(error, openai.APIConnectionError) or is_transport:
            return Failure("connection lost", f"{cause}: {self._said(error)}", may_be_billed=True)
        raise error

    def _said(self, error: Exception) -> str:
        return self.endpoint.hide(str(error.__cause__ or error) or str(error))


def _parsed(text: str) -> dict[str, Any] | None:
    """None for what is no JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
