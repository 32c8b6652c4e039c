"""The prompts: files of their own, `{{name}}` where something is put in. A folder of a user's replaces them."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

PLACES = {
    "summary": ("question", "units"),
    "groups": ("steps",),
    "refill": ("step", "units"),
    "map_reduce": ("question", "before", "paths", "num_paths"),
    "rewrite": ("question", "before", "outline", "path"),
    "independence": ("question", "before", "outline", "path"),
}
"""Prompt -> what is put in."""
_PLACE = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True)
class Prompts:
    """Texts by name. `digest` changes with every change of any of them."""

    texts: dict[str, str]

    @classmethod
    def read(cls, folder: str | Path | None = None) -> Prompts:
        """Ours, with those of a folder in their place.

        Raises ValueError where the folder has no prompt, or one does not have the places that belong in it.
        """
        texts = {
            name: files("mvtrain.curate.prompts_text").joinpath(f"{name}.md").read_text("utf-8") for name in PLACES
        }
        if folder is not None:
            own = {name: Path(folder) / f"{name}.md" for name in PLACES}
            found = {name: file.read_text(encoding="utf-8") for name, file in own.items() if file.is_file()}
            if not found:
                raise ValueError(f"{folder}: no prompt in it; expected {', '.join(f'{name}.md' for name in PLACES)}")
            for name, text in found.items():
                _check(own[name], name, text)
            texts |= found
        return cls({name: text.strip() for name, text in texts.items()})

    @property
    def digest(self) -> str:
        whole = "\0".join(f"{name}\0{text}" for name, text in sorted(self.texts.items()))
        return hashlib.sha256(whole.encode()).hexdigest()[:16]

    def fill(self, name: str, **values: str) -> str:
        """A prompt with everything put in; what is put in is text, and its braces are left alone."""
        return _PLACE.sub(lambda place: values[place[1]], self.texts[name])


def _check(file: Path, name: str, text: str) -> None:
    found = set(_PLACE.findall(text))
    for fault, names in (("lacks", set(PLACES[name]) - found), ("has an unknown", found - set(PLACES[name]))):
        if names:
            shown = ", ".join(f"{{{{{place}}}}}" for place in sorted(names))
            raise ValueError(f"{file}: the prompt {fault} {shown}; its places are {', '.join(PLACES[name])}")
