"""Answers on disk, by what was asked: one SQLite file beside the output.

It survives the end of the process at any moment, and several processes may use it at once (on a local file system:
SQLite's write-ahead log does not work on network file systems). Everything happens on one thread of its own, so the
event loop does not wait for the disk. Neither questions nor keys are in the file, only answers, hashes and costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

VERSION = 1
PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    token TEXT PRIMARY KEY, endpoint TEXT NOT NULL, batch_id TEXT, questions TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS costs (request TEXT PRIMARY KEY, dollars REAL NOT NULL);
"""
TABLES = {"answers", "batches", "costs"}
T = TypeVar("T")


def question_key(**content: Any) -> str:
    """SHA-256 of the content as JSON with sorted keys: the same question has the same key in every process."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerCache:
    """Values are JSON objects. None for the path: in memory, for one client only.

    Raises ValueError where the file is damaged or is something else, OSError where it cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answer cache")
        try:
            self._database = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def get(self, key: str) -> dict[str, Any] | None:
        return await self._run(self._get, key)

    async def put(self, key: str, value: dict[str, Any]) -> None:
        """Returns when it is kept. Where another process was quicker, its answer stays. A cancellation of the caller
        does not keep it from being written."""
        await self._run(self._put, key, value)

    async def spent(self) -> float:
        """US dollars of all requests up to now, in every run with this file."""
        return await self._run(self._spent)

    async def keep_cost(self, request: str, dollars: float) -> None:
        """Before a request goes out: the most it can cost. It counts if nothing more is heard of the request."""
        await self._run(self._keep_cost, request, dollars)

    def correct_cost(self, request: str, dollars: float) -> None:
        """What it has cost. Returns at once; where this cannot be written, the most it can cost goes on counting."""
        self._thread.submit(self._keep_cost, request, dollars)

    async def keep_batch(self, token: str, endpoint: str, questions: Any, batch_id: str | None = None) -> None:
        """A batch that is about to be created, or, with its id, has been. Replaces what was known of it."""
        await self._run(self._keep_batch, token, endpoint, json.dumps(questions), batch_id)

    async def batches(self, endpoint: str) -> list[tuple[str, str | None, Any]]:
        """(token, id or None, questions) of all that were not finished."""
        return await self._run(self._batches, endpoint)

    async def finish_batch(self, token: str, answers: dict[str, dict[str, Any]], dollars: float = 0.0) -> None:
        """Keeps its answers and its cost and forgets the batch, all or nothing."""
        await self._run(self._finish_batch, token, answers, dollars)

    def close(self) -> None:
        """After everything that was asked for before is done."""
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _open(self) -> sqlite3.Connection:
        with self._explained():
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            name = ":memory:" if self.path is None else str(self.path)
            database = sqlite3.connect(name, timeout=PATIENCE, isolation_level=None)
            try:
                self._prepare(database)
            except BaseException:
                database.close()
                raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        _patiently(lambda: database.execute("PRAGMA journal_mode=WAL"))
        # Survives a kill of the process; a failure of the machine may cost the last answers, never the file.
        database.execute("PRAGMA synchronous=NORMAL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version not in (0, VERSION) or (tables and not tables >= TABLES):
            raise ValueError(f"{self.path}: is no answer cache of this version; choose another file")
        if version == 0:
            database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")

    def _get(self, key: str) -> dict[str, Any] | None:
        with self._explained():
            row = self._database.execute("SELECT value, checksum FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if zlib.crc32(row[0].encode()) != row[1]:
            raise ValueError(self._damaged("an answer is not as it was written"))
        return json.loads(row[0])

    def _put(self, key: str, value: dict[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=False)
        with self._explained():
            row = (key, text, zlib.crc32(text.encode()))
            self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row)

    def _spent(self) -> float:
        with self._explained():
            return self._database.execute("SELECT total(dollars) FROM costs").fetchone()[0]

    def _keep_cost(self, request: str, dollars: float) -> None:
        with self._explained():
            self._database.execute("INSERT OR REPLACE INTO costs VALUES (?, ?)", (request, dollars))

    def _keep_batch(self, *row: Any) -> None:
        with self._explained():
            sql = "INSERT OR REPLACE INTO batches (token, endpoint, questions, batch_id) VALUES (?, ?, ?, ?)"
            self._database.execute(sql, row)

    def _batches(self, endpoint: str) -> list[tuple[str, str | None, Any]]:
        with self._explained():
            sql = "SELECT token, batch_id, questions FROM batches WHERE endpoint = ? ORDER BY rowid"
            rows = self._database.execute(sql, (endpoint,)).fetchall()
        return [(token, batch_id, json.loads(questions)) for token, batch_id, questions in rows]

    def _finish_batch(self, token: str, answers: dict[str, dict[str, Any]], dollars: float) -> None:
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for key, value in answers.items():
                    self._put(key, value)
                self._keep_cost(token, dollars)
                self._database.execute("DELETE FROM batches WHERE token = ?", (token,))
                self._database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors that say what to do."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            if _is_busy(error):
                raise OSError(f"{self.path}: another process has been writing to it for over {PATIENCE:g} s") from None
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                raise OSError(f"{self.path}: the answers cannot be kept there: {error}") from None
            raise ValueError(self._damaged(str(error))) from None

    def _damaged(self, why: str) -> str:
        return (
            f"{self.path}: the answer cache is damaged ({why}). Move it away, with the -wal and -shm files beside it, "
            "and start again: its answers will be asked for, and paid for, once more"
        )


def _patiently(action: Callable[[], Any]) -> None:
    """SQLite does not wait by itself where two processes switch a new file to the write-ahead log."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            action()
            return
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _is_busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and ("locked" in str(error) or "busy" in str(error))
