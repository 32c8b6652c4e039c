"""What decides the traces of a folder: kept, so that the next run goes on, or is told that it is another one."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvtrain.curate.curator import CurateSettings
from mvtrain.curate.endpoint import ClientConfig
from mvtrain.curate.outputs import REJECTED, STAGES, TRACES
from mvtrain.curate.prompts import Prompts
from mvtrain.folders import write_whole
from mvtrain.provenance import code_version, without_secrets

RUN = "run.json"
OUTPUTS = (TRACES, REJECTED, STAGES, "README.md", "page.html")


def identity_of(source: str, config: ClientConfig, settings: CurateSettings, prompts: Prompts) -> dict[str, Any]:
    """Plain values, without secrets. Rows of the source are told apart by their content, not here; the address is left
    out, as a server moves between the jobs that run it."""
    return {
        "source": Path(source).name,
        "model": config.model,
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
    foreign = [name for name in OUTPUTS if (folder / name).exists()]
    if foreign and not file.exists():
        raise ValueError(
            f"{folder} holds {', '.join(foreign)}, which `mvtrain curate` has not written; give another folder"
        )
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["identity"] if file.exists() else identity
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not written by `mvtrain curate`; give another folder") from None
    names = sorted(k for k in before.keys() | identity.keys() if before.get(k) != identity.get(k))
    has_records = journal.exists() and journal.stat().st_size > 0
    if names and has_records and not overwrite:
        changes = "; ".join(f"{k} was {before.get(k)!r} and is {identity.get(k)!r}" for k in names)
        raise ValueError(f"{folder} was made with other settings: {changes}; give another folder, or --overwrite")
    if overwrite:
        journal.unlink(missing_ok=True)
    (folder / "work").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"identity": identity, "code": code_version()}, indent=2, ensure_ascii=False)
    write_whole(file, text + "\n")
