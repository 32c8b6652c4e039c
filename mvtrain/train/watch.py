"""Notices that a rank has gone, says which one, and ends the others.

A rank that is killed says nothing, and the others would wait for it in a collective for as long as a timeout allows.
Here every rank holds a TCP connection to the first one. The kernel closes it when a process ends, however it ends, and
TCP keep-alive finds machines that are gone: no thread has to be on time for that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from mvtrain.provenance import without_secrets
from mvtrain.train.processes import Ranks
from mvtrain.train.stopping import STOPPED

GOODBYE = b"bye\n"
STOPPING = b"stopped\n"
"""A rank was asked to stop while no step was running, so that there is nothing to finish."""
INTRODUCTION = 10.0
"""Seconds in which a peer has to say who it is. Ranks do so at once."""
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine that does not answer is given up after 10 + 4 x 5 seconds."""


class Watch:
    """The connections of this rank. Started by every rank after the process group."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.name = f"rank {ranks.rank} on {socket.gethostname()} (process {os.getpid()})"
        self.leave: Callable[[], None] = lambda: None
        """Called before this process ends because another rank was asked to stop."""
        self._closing = False
        self._peers: list[socket.socket] = []
        token = secrets.token_hex(16)
        listener = socket.create_server(("", 0), backlog=ranks.world_size) if ranks.is_first else None
        port = listener.getsockname()[1] if listener else 0
        facts = ranks.gather((token, port, self.name))
        self._token, port, first = facts[0]
        if listener:
            self._accept(listener, ranks.world_size - 1)
        else:
            self._connect(os.environ["MASTER_ADDR"], port, first)
        ranks.wait()

    def explain(self, error: BaseException) -> None:
        """Before this rank ends with an error: give the true cause time to be found, then tell the others."""
        if isinstance(error, RuntimeError):  # a collective fails at once when another rank is gone
            time.sleep(3)
        text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
        self._tell(without_secrets(f"{self.name} failed: {text}\n").encode())

    def stop_others(self) -> None:
        """This rank was asked to stop and ends right now: so shall the others."""
        self._closing = True
        self._tell(STOPPING)

    def close(self) -> None:
        """The run is over: from now on connections may end."""
        self._closing = True
        self._tell(GOODBYE)

    def _accept(self, listener: socket.socket, count: int) -> None:
        listener.settimeout(60)
        while len(self._peers) < count:
            peer, _ = listener.accept()
            peer.settimeout(INTRODUCTION)
            reader = peer.makefile("rb")
            said = b""
            with contextlib.suppress(OSError):  # a stranger may say nothing, or leave
                said = reader.readline(1000)
            token, _, name = said.decode(errors="replace").strip().partition(" ")
            if token == self._token:
                self._follow(peer, reader, name)
            else:  # somebody else's
                peer.close()
        listener.close()

    def _connect(self, address: str, port: int, name: str) -> None:
        peer = socket.create_connection((address, port), timeout=60)
        peer.sendall(f"{self._token} {self.name}\n".encode())
        self._follow(peer, peer.makefile("rb"), name)

    def _follow(self, peer: socket.socket, reader: BinaryIO, name: str) -> None:
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            if hasattr(socket, option):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._peers.append(peer)
        threading.Thread(target=self._listen, args=(reader, name), name=f"watch {name}", daemon=True).start()

    def _listen(self, reader: BinaryIO, name: str) -> None:
        try:
            text = reader.readline()
        except OSError:
            text = b""
        if text == GOODBYE or self._closing:
            return
        if text == STOPPING:
            with contextlib.suppress(Exception):
                self.leave()
            self.stop_others()
            os._exit(STOPPED)
        gone = f"{name} is gone: killed, out of memory, or its machine is down"
        reason = text.decode(errors="replace").strip() or gone
        self._tell(f"{reason}\n".encode())
        # The first rank speaks for all; where it is the one that is gone, one rank of each machine does.
        if self.ranks.is_first or (not text and self.ranks.local_rank in (0, 1)):
            print(f"sft: error: {reason}; all ranks stop", file=sys.stderr, flush=True)
        os._exit(1)

    def _tell(self, message: bytes) -> None:
        for peer in self._peers:
            with contextlib.suppress(OSError):  # those that are gone need not know
                peer.sendall(message)
