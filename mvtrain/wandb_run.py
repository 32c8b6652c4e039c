"""A Weights & Biases run, if asked for. The first failure warns once, and whatever is tracked goes on without."""

from __future__ import annotations

import contextlib
import netrc
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mvtrain.provenance import without_secrets

SERVER = "https://api.wandb.ai"
"""Where WANDB_BASE_URL names no other."""
FINISH_SECONDS = 120
"""How long the end of a run waits for wandb to send the rest."""

Mode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True)
class WandbRun:
    """Which run is meant. A run that goes on has the same `id` and goes on there too."""

    folder: Path
    """Offline records go to `folder`/wandb."""
    project: str | None
    """None: nothing is tracked."""
    name: str
    id: str
    config: dict[str, Any]
    mode: Mode = "auto"
    """auto: what WANDB_MODE says, else online with an API key in the environment or netrc, otherwise offline."""
    program: str = "sft"
    """Who warns."""
    instead: str = "log.jsonl goes on"
    """What there is without."""
    axis: str = "step"
    """Which number is the axis of all charts: a run that was restarted logs some steps again."""


class NoTracker:
    """Takes what a tracker takes and does nothing."""

    def log(self, record: dict[str, Any]) -> None:
        pass

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def log_file(self, name: str, file: Path) -> None:
        pass

    def close(self) -> None:
        pass


class WandbTracker:
    """A Weights & Biases run. The first failure warns, and the run goes on without."""

    def __init__(self, run: Any, wanted: WandbRun) -> None:
        self._run = run
        self.wanted = wanted
        self._gave_up = False

    def log(self, record: dict[str, Any]) -> None:
        numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
        self._attempt("log", lambda run: run.log(numbers))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table that can be sorted and filtered."""
        import wandb

        self._attempt("log", lambda run: run.log({name: wandb.Table(list(columns), [list(row) for row in rows])}))

    def log_file(self, name: str, file: Path) -> None:
        """A page, if it is there."""
        if file.is_file():
            import wandb

            self._attempt("log", lambda run: run.log({name: wandb.Html(file.read_text("utf-8"), inject=False)}))

    def close(self) -> None:
        """Wait for what is being sent, but not for a service that does not answer."""
        thread = threading.Thread(target=self._attempt, args=("finish", lambda run: run.finish()), daemon=True)
        thread.start()
        thread.join(FINISH_SECONDS)
        if thread.is_alive():
            self._gave_up = True
            _warn(self.wanted, "could not send everything", TimeoutError(f"no answer for {FINISH_SECONDS} s"))

    def _attempt(self, what: str, action: Any) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # whatever a tracking service does wrong, training goes on
            self._run = None
            if not self._gave_up:  # else it was said
                _warn(self.wanted, f"could not {what}", error)


def start_wandb(wanted: WandbRun) -> NoTracker | WandbTracker:
    """Start or continue a run.

    A service that cannot be reached or refuses the key costs one warning, and the run is recorded offline; without
    wandb, or with a full disk, it is not recorded there at all.
    """
    mode = wanted.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    if wanted.project is None or mode == "disabled":
        return NoTracker()
    for attempt in (mode, "offline") if mode == "online" else (mode,):
        try:
            return WandbTracker(_init(wanted, attempt), wanted)
        except Exception as error:  # ImportError, no network, a wrong key
            if attempt == "online":
                _forget_failed_run()
            again = f"recording into {wanted.folder}/wandb; `wandb sync` sends it later"
            _warn(wanted, "not used", error, again if attempt == "online" else "")
    return NoTracker()


def _forget_failed_run() -> None:
    """wandb's background service takes the run's id for used until it is started anew."""
    with contextlib.suppress(Exception):
        import wandb

        wandb.teardown()


def _init(wanted: WandbRun, mode: str) -> Any:
    if mode == "online" and not _has_key():  # wandb would ask for one on a terminal, and wait
        raise ValueError(f"no API key for {_server()} in WANDB_API_KEY or ~/.netrc")
    # Otherwise it also reports its own errors, and where that is refused prints so beside the one warning.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    run = wandb.init(
        project=wanted.project,
        name=wanted.name,
        id=wanted.id,
        resume="allow",
        mode=mode,
        dir=str(wanted.folder),
        config=without_secrets(wanted.config),
        settings=wandb.Settings(silent=True, init_timeout=30),
    )
    run.define_metric(wanted.axis)
    run.define_metric("*", step_metric=wanted.axis)
    return run


def _server() -> str:
    return os.environ.get("WANDB_BASE_URL") or SERVER


def _has_key() -> bool:
    """Where wandb looks as well, for the server of WANDB_BASE_URL."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    file = os.environ.get("NETRC")
    try:
        found = netrc.netrc(os.path.expanduser(file) if file else None)
        return found.authenticators(urlsplit(_server()).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _warn(wanted: WandbRun, what: str, error: Exception, instead: str = "") -> None:
    reason = (str(error).strip().splitlines() or [""])[0]
    text = f"wandb {what}: {type(error).__name__}: {reason}; {instead or wanted.instead}"
    print(f"{wanted.program}: warning: {without_secrets(text)}", file=sys.stderr, flush=True)
