"""As much of a Weights & Biases server as its client needs to start a run, on the loopback network."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Iterator


class WandbServer(http.server.ThreadingHTTPServer):
    """Accepts runs, or answers 401 to everything; `die()` ends it in the middle of whatever it does."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *, refuses: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.refuses = refuses
        self.history: list[str] = []
        """Lines of wandb-history.jsonl that have come."""
        self.asked: list[str] = []
        self.connections: list[socket.socket] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def die(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address) -> None:
        """Connections that were cut off are no news."""


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        answer: dict = {}
        if self.path == "/graphql":
            answer = {"data": _graphql(**json.loads(body))}
        elif self.path.endswith("/file_stream"):
            files = json.loads(body).get("files", {})
            self.server.history += files.get("wandb-history.jsonl", {}).get("content", [])
        data = json.dumps(answer).encode()
        self.send_response(401 if self.server.refuses else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT = do_POST

    def log_message(self, *arguments) -> None:
        pass


def _graphql(query: str, variables: dict | None = None, **_) -> dict:
    values = variables or {}
    if "upsertBucket" in query:
        project = {"id": "p", "name": values.get("project") or "p", "entity": {"id": "e", "name": "me"}}
        bucket = {"id": "b", "name": values.get("name"), "displayName": "n", "historyLineCount": 0, "project": project}
        return {"upsertBucket": {"bucket": bucket, "inserted": True}}
    if "createRunFiles" in query:
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": []}}
    return {"model": None, "viewer": {"id": "v", "entity": "me"}, "serverInfo": {"features": []}}


@contextlib.contextmanager
def wandb_server(*, refuses: bool) -> Iterator[WandbServer]:
    server = WandbServer(refuses=refuses)
    try:
        yield server
    finally:
        server.die()
