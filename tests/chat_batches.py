"""The part of the chat server of the tests that speaks of files and batches; see tests/chat_server.py."""

from __future__ import annotations

import email.parser
import email.policy
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.chat_replies import Fault, Faults, Play, Reply, Seen, completion


@dataclass
class _Batch:
    """A batch and what it will answer."""

    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    polls: int = 0


class BatchApi:
    """Files and batches, in memory."""

    def __init__(self, play: Play, faults: Faults | None) -> None:
        self.play, self.faults = play, faults
        self.count = 0
        """Chat requests so far, lines of batches among them."""
        self.polls_per_batch = 2
        self.ends: Callable[[int], str] = lambda number: "completed"
        self.batches: dict[str, _Batch] = {}
        self.files: dict[str, bytes] = {}
        self._times_seen: Counter[bytes] = Counter()

    def other(self, seen: Seen) -> tuple[int, bytes]:
        path = seen.path.partition("?")[0]
        if path == "/v1/models":
            return 200, b'{"object": "list", "data": [{"id": "played", "object": "model"}]}'
        if path == "/v1/files" and seen.method == "POST":
            return self._upload(seen)
        if path.startswith("/v1/files/") and path.endswith("/content"):
            name = path.split("/")[3]
            return (200, self.files[name]) if name in self.files else (404, b'{"error": {"message": "no such file"}}')
        if path == "/v1/batches":
            return 200, json.dumps(self._create(seen.body) if seen.method == "POST" else self._list()).encode()
        if path.startswith("/v1/batches/") and path.split("/")[3] in self.batches:
            return 200, json.dumps(self._poll(path.split("/")[3])).encode()
        return 404, json.dumps({"error": {"message": f"no such path: {path}", "code": "not_found"}}).encode()

    def _upload(self, seen: Seen) -> tuple[int, bytes]:
        head = f"Content-Type: {seen.headers['content-type']}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + seen.body)
        parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
        data = parts["file"].get_payload(decode=True)
        purpose = parts["purpose"].get_payload(decode=True).decode().strip()
        name = self._keep(data)
        facts = {"id": name, "object": "file", "bytes": len(data), "created_at": int(time.time()), "purpose": purpose}
        return 200, json.dumps({**facts, "filename": parts["file"].get_filename(), "status": "processed"}).encode()

    def _keep(self, data: bytes) -> str:
        name = f"file-{len(self.files)}"
        self.files[name] = data
        return name

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = f"batch-{len(self.batches)}"
        kept = {key: body.get(key) for key in ("endpoint", "completion_window", "input_file_id", "metadata")}
        facts = {"id": name, "object": "batch", "created_at": int(time.time()), "status": "validating", **kept}
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].decode().splitlines()]
        self.batches[name] = _Batch(facts, lines)
        return facts

    def _list(self) -> dict[str, Any]:
        found = [batch.facts for batch in reversed(self.batches.values())]
        return {"object": "list", "data": found, "has_more": False, "first_id": None, "last_id": None}

    def _poll(self, name: str) -> dict[str, Any]:
        batch = self.batches[name]
        batch.polls += 1
        if batch.polls == self.polls_per_batch:
            self._end(batch, self.ends(list(self.batches).index(name)))
        elif batch.polls < self.polls_per_batch:
            batch.facts["status"] = "in_progress"
        return batch.facts

    def _end(self, batch: _Batch, status: str) -> None:
        batch.facts["status"] = status
        if status == "failed":
            error = {"code": "invalid_json", "message": "line 1 is not valid", "line": 1, "param": None}
            batch.facts["errors"] = {"object": "list", "data": [error]}
            return
        done = len(batch.lines) if status == "completed" else len(batch.lines) // 2
        answered = [self._line(line) for line in batch.lines[:done]][::-1]  # in any order, says the documentation
        if status == "expired":
            error = {"code": "batch_expired", "message": "This request could not be executed before the window ended."}
            answered += [{"custom_id": x["custom_id"], "response": None, "error": error} for x in batch.lines[done:]]
        for field_name, wanted in (("output_file_id", True), ("error_file_id", False)):
            rows = [row for row in answered if row is not None and _is_good(row) == wanted]
            if rows:
                batch.facts[field_name] = self._keep("".join(json.dumps(row) + "\n" for row in rows).encode())

    def _line(self, line: dict[str, Any]) -> dict[str, Any] | None:
        """A line of the output or of the error file; None where a fault leaves it out of both."""
        body = json.dumps(line["body"], sort_keys=True).encode()
        n = self._times_seen[body]
        self._times_seen[body] += 1
        self.count += 1
        fault = self.faults(line["body"], n) if self.faults else None
        reply = fault if fault is not None else self.play(line["body"])
        if isinstance(reply, Fault):
            if reply.kind != "status":
                return None
            response = {"status_code": reply.code, "request_id": "r", "body": json.loads(reply.body)}
        else:
            reply = Reply(reply) if isinstance(reply, str) else reply
            response = {"status_code": 200, "request_id": "r", "body": completion(line["body"], reply)}
        return {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}


def _is_good(row: dict[str, Any]) -> bool:
    return row["response"] is not None and row["response"]["status_code"] == 200
