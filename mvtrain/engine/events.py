"""What happens to a request, told after every step: forks, text of every branch, ends of paths, joins, the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from mvtrain.engine.branches import Branch
from mvtrain.engine.completion import Completion
from mvtrain.engine.detokenizer import Detokenizer
from mvtrain.engine.request import Request

_ALWAYS = ("kind", "request", "branch")


@dataclass(frozen=True)
class Event:
    """One thing that happened. A branch is named by its lineage: () is the top level, (0, 1) path 2 of block 1."""

    kind: Literal["fork", "text", "end", "join", "finish"]
    """"text" for more text of a branch; "fork" and "join" of a block in it; "end" of a path; "finish" of all."""
    request: int
    branch: tuple[int, ...] = ()
    text: str = ""
    """Of "text": what was added, forced text included."""
    num_tokens: int = 0
    """Of "text": how many tokens that is."""
    label: str | None = None
    """Of the path that `branch` is."""
    paths: tuple[str, ...] = ()
    """Of "fork": the labels of the new paths, which are (*branch, block, 0), (*branch, block, 1), ..."""
    block: int | None = None
    """Of "fork" and "join"."""
    reason: str = ""
    """Of "end" and "finish"."""
    completion: Completion | None = None
    """Of "finish"."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is empty is left out."""
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "completion"}
        empty = [name for name, value in shown.items() if value in ("", 0, None, ()) and name not in _ALWAYS]
        for name in empty if self.block is None else [name for name in empty if name != "block"]:
            del shown[name]
        return shown | ({"completion": self.completion.as_dict()} if self.completion else {})


class _Told:
    """How much of a branch has been told."""

    def __init__(self, reader: Detokenizer) -> None:
        self.reader = reader
        self.num_blocks = 0
        """Blocks of which the fork was told."""
        self.in_block = False
        """Whether the join of the last one was not told yet."""
        self.over = False


class Watcher:
    """Compares a request with what it has told of it, and tells the rest."""

    def __init__(self, request: Request, index: int) -> None:
        self.request = request
        self.index = index
        self._told: dict[Branch, _Told] = {}

    def events(self, completion: Completion | None = None) -> Iterator[Event]:
        """What is new, in an order in which the text could be put together; `completion` says that it is all."""
        yield from self._of(self.request.root)
        if completion is not None:
            yield Event("finish", self.index, reason=completion.finish_reason, completion=completion)

    def _of(self, branch: Branch) -> Iterator[Event]:
        told = self._told.get(branch)
        if told is None:
            told = self._told[branch] = _Told(Detokenizer(branch, self.request.markup))
        if told.over:
            return
        while True:
            if told.in_block:
                yield from self._inside(branch, told)
                if told.in_block:
                    return
            offset, paths = _block(branch, told.num_blocks)
            yield from self._text(branch, told.reader, offset)
            if not paths:
                break
            told.num_blocks += 1
            told.in_block = True
            labels = tuple(path.label for path in paths)
            yield Event("fork", self.index, branch.lineage, paths=labels, block=told.num_blocks - 1)
        if branch.done:
            told.over = True
            if branch.parent is not None:
                yield Event("end", self.index, branch.lineage, label=branch.label, reason=branch.ended_by)

    def _inside(self, branch: Branch, told: _Told) -> Iterator[Event]:
        _, paths = _block(branch, told.num_blocks - 1)
        for path in paths:
            yield from self._of(path)
        if all(path.done for path in paths):
            told.in_block = False
            yield Event("join", self.index, branch.lineage, block=told.num_blocks - 1)

    def _text(self, branch: Branch, reader: Detokenizer, offset: int | None) -> Iterator[Event]:
        before = reader.num_read
        text = reader.read(offset, whole=offset is not None or branch.done)
        if reader.num_read > before:
            yield Event("text", self.index, branch.lineage, text, reader.num_read - before, branch.label)


def _block(branch: Branch, block: int) -> tuple[int | None, list[Branch]]:
    """(offset, paths) of a block of the branch; (None, []) if there is no such block yet."""
    found = [(offset, child) for offset, child in branch.children if child.lineage[-2] == block]
    return (found[0][0], [child for _, child in found]) if found else (None, [])
