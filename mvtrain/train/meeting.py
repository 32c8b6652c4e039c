"""How the ranks of a run find each other: all come to a port of the first one's host, or an error says who did not.

torch does this too, but waits half an hour in silence for a rank that cannot come, and for ever where another program
answers at the port.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch.distributed import DistError, TCPStore

from mvtrain.launchers import Launch, LaunchError

PATIENCE = 300.0
"""Seconds until a rank that waits for others gives up."""
NOTICE = 30.0
"""Seconds after which a rank that still waits says so."""
ANSWER = 20.0
"""Seconds the first rank's store may take to answer a connection. It takes milliseconds."""

HOW_TO_MOVE = "choose another port (`--master_port N` of the launcher, or MASTER_PORT=N with srun)"


_meetings: dict[tuple[str, int], TCPStore] = {}
"""Stores of this process, by address: the ranks talk through them as long as they live."""


@contextmanager
def met(launch: Launch, patience: float = PATIENCE) -> Iterator[None]:
    """Within it every rank has come, and torch connects through the store they met at.

    Raises:
        LaunchError: the port is in use, the first rank cannot be reached, or ranks did not come within `patience`.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        yield  # torchrun has brought its ranks together, and keeps the store
        return
    address = (launch.master_addr, launch.master_port)
    if address not in _meetings:
        _meetings[address] = meet(launch, patience)
    # This is how torchrun says that there is a store, also for the first rank; each connection has names of its own.
    number = _meetings[address].add(f"connections/{launch.rank}", 1)
    said = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": str(number)}
    os.environ.update(said)
    try:
        yield
    finally:
        for name in said:
            del os.environ[name]  # not for the processes this one starts


def meet(launch: Launch, patience: float = PATIENCE) -> TCPStore:
    """Return when every rank has come. The first rank serves the store; it lives as long as the returned object.

    Raises:
        LaunchError: the port is in use, the first rank cannot be reached, or ranks did not come within `patience`.
    """
    store = _serve(launch) if launch.rank == 0 else _reach(launch, patience)
    try:
        _arrive(store, launch)
        return _await_all(store, launch, patience) if launch.rank == 0 else _await_verdict(store, launch, patience)
    except DistError as error:  # the first rank is gone, and the store with it
        raise LaunchError(
            f"{_me(launch)} lost the first rank at {_where(launch)} while the ranks met; its output says why ({error})",
            on_all_ranks=False,
        ) from None


def decline(launch: Launch, reason: str, patience: float = PATIENCE) -> None:
    """This rank cannot take part: tell the first one, which waits for it. Gives up in silence."""
    with suppress(LaunchError, DistError):
        _reach(launch, patience).set("declined", f"{_me(launch)} cannot take part: {reason}")


def _serve(launch: Launch) -> TCPStore:
    try:
        # By itself the first rank is reached in any case; whether others reach it is theirs to say.
        return TCPStore(
            "127.0.0.1", launch.master_port, None, True, timeout=timedelta(seconds=60), wait_for_workers=False
        )
    except DistError as error:
        reason = "is in use, maybe by another run"
        if os.strerror(errno.EADDRINUSE).lower() not in str(error).lower():
            reason = f"cannot be opened ({error})"
        raise LaunchError(
            f"port {launch.master_port} of {socket.gethostname()}, where the ranks were to meet ({_where(launch)}), "
            f"{reason}; {HOW_TO_MOVE}",
            on_all_ranks=False,
        ) from None


def _reach(launch: Launch, patience: float) -> TCPStore:
    """Connect to the first rank, which may start later than we do."""
    began = time.monotonic()
    told = False
    while True:
        try:
            socket.create_connection((launch.master_addr, launch.master_port), timeout=5).close()
            break
        except OSError as error:
            waited = time.monotonic() - began
            if waited > patience:
                raise LaunchError(
                    f"{_me(launch)} could not reach the first rank at {_where(launch)} within {waited:.0f} s: "
                    f"{error}. Is {launch.master_addr} an address of the host of rank 0 (`--master_addr`, or "
                    "MASTER_ADDR with srun), did rank 0 start (its output says so), and does a firewall leave the port "
                    "open?",
                    on_all_ranks=False,
                ) from None
            if waited > NOTICE and not told:
                told = True
                _say(f"{_me(launch)} has waited {waited:.0f} s for the first rank at {_where(launch)}: {error}")
        time.sleep(0.5)
    return _open_store(launch, min(ANSWER, patience))


def _open_store(launch: Launch, patience: float) -> TCPStore:
    """The first rank's store. In a thread: torch waits without end for an answer from a program that is no store."""
    found: list[Any] = []

    def connect() -> None:
        try:
            address = socket.gethostbyname(launch.master_addr)  # torch would try a name's IPv6 address first
        except OSError:
            address = launch.master_addr
        try:
            options = {"timeout": timedelta(seconds=patience), "wait_for_workers": False}
            found.append(TCPStore(address, launch.master_port, None, False, **options))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience)
    if found and isinstance(found[0], TCPStore):
        return found[0]
    reason = f" ({found[0]})" if found else ""
    raise LaunchError(
        f"{_me(launch)} reached {_where(launch)}, but no first rank of a run answers there{reason}; either rank 0 "
        f"has just ended, and its output says why, or another program has the port: {HOW_TO_MOVE}",
        on_all_ranks=False,
    )


def _arrive(store: TCPStore, launch: Launch) -> None:
    if store.add(f"arrived/{launch.rank}", 1) > 1:
        raise LaunchError(
            f"{_me(launch)} came to {_where(launch)}, but a rank {launch.rank} is there already: another run meets "
            f"there, or two hosts were given the same number (`--node_rank`); {HOW_TO_MOVE}",
            on_all_ranks=False,
        )
    store.set(f"address/{launch.rank}", _own_address())
    store.set(f"host/{launch.rank}", socket.gethostname())
    store.add("arrived", 1)


def _await_all(store: TCPStore, launch: Launch, patience: float) -> TCPStore:
    """The first rank's part: it decides whether the run begins."""
    began, told = time.monotonic(), False
    while (arrived := store.add("arrived", 0)) < launch.world_size:
        waited = time.monotonic() - began
        if store.check(["declined"]):
            _call_off(store, store.get("declined").decode())
        if waited > patience:
            _call_off(store, _who_is_missing(store, launch, patience))
        if waited > NOTICE and not told:
            told = True
            _say(f"{arrived} of {launch.world_size} ranks have come to {_where(launch)} in {waited:.0f} s; waiting")
        time.sleep(0.1)
    unreachable = _who_offers_loopback(store, launch)
    if unreachable:
        _call_off(store, unreachable)
    store.set("verdict", "go")
    return store


def _call_off(store: TCPStore, message: str) -> NoReturn:
    store.set("verdict", f"error: {message}")
    time.sleep(2)  # the store ends with this rank; let the others read it first
    raise LaunchError(message, on_all_ranks=True)


def _who_is_missing(store: TCPStore, launch: Launch, patience: float) -> str:
    missing = [rank for rank in range(launch.world_size) if not store.check([f"host/{rank}"])]
    hosts = {store.get(f"host/{rank}").decode() for rank in range(launch.world_size) if rank not in missing}
    return (
        f"{show_ranks(missing)} of {launch.world_size} did not come to {_where(launch)} within {patience:.0f} s "
        f"(others did, from {', '.join(sorted(hosts))}); their output says why. If they wait as well, "
        "they cannot reach this address: a firewall, or the wrong network (`--master_addr`, or MASTER_ADDR with srun)"
    )


def _own_address() -> str:
    """What gloo gives the other ranks to connect to, if it has to guess: the address of the host's own name."""
    if torch.cuda.is_available() or "GLOO_SOCKET_IFNAME" in os.environ:
        return "chosen otherwise"
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "unknown"


def _who_offers_loopback(store: TCPStore, launch: Launch) -> str | None:
    """With several hosts, gloo would wait long for an address that means another host to each of them."""
    ranks = range(launch.world_size)
    hosts = [store.get(f"host/{rank}").decode() for rank in ranks]
    addresses = [store.get(f"address/{rank}").decode() for rank in ranks]
    local = {hosts[rank]: addresses[rank] for rank in ranks if addresses[rank].startswith("127.")}
    if len(set(hosts)) == 1 or not local:
        return None
    names = ", ".join(f"{host} ({address})" for host, address in local.items())
    return (
        f"the own name of {names} is an address that no other host can reach (see /etc/hosts there); set "
        "GLOO_SOCKET_IFNAME on every host to the network that joins them (`ip -brief address` lists them), for example "
        "in ~/.deepspeed_env"
    )


def _await_verdict(store: TCPStore, launch: Launch, patience: float) -> TCPStore:
    deadline = time.monotonic() + patience + 60  # the first rank may have begun to wait later
    while not store.check(["verdict"]):
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{_me(launch)} had no answer from the first rank at {_where(launch)}", on_all_ranks=False
            )
        time.sleep(0.1)
    verdict = store.get("verdict").decode()
    if verdict.startswith("error: "):
        raise LaunchError(verdict.removeprefix("error: "), on_all_ranks=True)
    return store


def _say(text: str) -> None:
    print(f"sft: {text}", file=sys.stderr, flush=True)


def _me(launch: Launch) -> str:
    return f"rank {launch.rank} on {socket.gethostname()}"


def _where(launch: Launch) -> str:
    return f"{launch.master_addr}:{launch.master_port}"


def show_ranks(ranks: list[int]) -> str:
    """`rank 3`, `ranks 1-3, 7`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {text}"
