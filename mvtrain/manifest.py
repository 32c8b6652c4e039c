"""`mvtrain.json`: what a Multiverse checkpoint says about itself. Standard library only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MANIFEST_NAME = "mvtrain.json"


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of the checkpoint in `folder`, or None where it has none.

    The keys that training and generation need are `scheme` (isolated, original or causal) and `tags` (tag -> id).
    Raises ValueError where the file is there but cannot be what `mvtrain convert` writes.
    """
    file = Path(folder) / MANIFEST_NAME
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); convert the checkpoint again") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("tags"), dict) or "scheme" not in manifest:
        raise ValueError(f'{file}: expected an object with "scheme" and "tags"; convert the checkpoint again')
    return manifest


def write_manifest(folder: str | Path, manifest: dict[str, Any]) -> None:
    """Write `manifest` into `folder` as JSON with its keys in the given order."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (Path(folder) / MANIFEST_NAME).write_text(text, encoding="utf-8")
