"""What decides the traces of a folder, and what has been spent for it: kept, so that the next run goes on."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvtrain.curate.curator import CurateSettings
from mvtrain.curate.endpoint import ClientConfig, Endpoint
from mvtrain.curate.prompts import Prompts
from mvtrain.folders import write_whole
from mvtrain.provenance import code_version, without_secrets

RUN = "run.json"
EVERY_SECONDS = 0.5


def identity_of(source: str, config: ClientConfig, settings: CurateSettings, prompts: Prompts) -> dict[str, Any]:
    """Plain values, without secrets. Rows of the source are told apart by their content, not here."""
    return {
        "source": Path(source).name,
        "model": config.model,
        "endpoint": Endpoint(config).address,
        "temperature": config.temperature,
        "extra_body": without_secrets(dict(config.extra_body)),
        "prompts": prompts.digest,
        **asdict(settings),
    }


def take_up(folder: Path, identity: dict[str, Any], overwrite: bool) -> None:
    """Go on in a folder, or begin in it.

    With `overwrite` records that other settings have made are forgotten; answers are kept, as they are the same for the
    same question. Raises ValueError where the folder was made with other settings, and names them.
    """
    file, journal = folder / RUN, folder / "work" / "finished.jsonl"
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["identity"] if file.exists() else identity
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not written by `mvtrain curate`; give another folder") from None
    names = sorted(k for k in before.keys() | identity.keys() if before.get(k) != identity.get(k))
    if names and not overwrite:
        changes = "; ".join(f"{k} was {before.get(k)!r} and is {identity.get(k)!r}" for k in names)
        raise ValueError(f"{folder} was made with other settings: {changes}; give another folder, or --overwrite")
    if overwrite:
        journal.unlink(missing_ok=True)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity, "code": code_version()}, indent=2, ensure_ascii=False)
    write_whole(file, text + "\n")


class Purse:
    """US dollars that all runs into a folder have spent."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.spent = float(json.loads(file.read_text(encoding="utf-8"))["spent"]) if file.exists() else 0.0
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f'{file}: expected {{"spent": US dollars}}; put it right, the ceiling depends on it'
            ) from None
        self._noted = time.monotonic()

    def note(self, spent: float, now: bool = False) -> None:
        """Write it down, now or if the last time is a while ago."""
        if now or time.monotonic() - self._noted > EVERY_SECONDS:
            self._noted = time.monotonic()
            self.spent = spent
            write_whole(self.file, json.dumps({"spent": spent}) + "\n")
