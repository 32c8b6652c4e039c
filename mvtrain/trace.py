"""The tree of a trace, and walks over it. Standard library only.

Trees of any depth can be built, rendered and walked; comparing, hashing or printing a tree that nests deeper than a few
hundred blocks meets Python's recursion limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


def _strip(node: object, name: str) -> None:
    object.__setattr__(node, name, getattr(node, name).strip())


def _normal(parts: Iterable[Block | Think | str]) -> tuple:
    """`parts` with the texts stripped, neighbouring texts joined by a newline and empty texts left out."""
    normal: list = []
    for part in parts:
        if not isinstance(part, str):
            normal.append(part)
        elif part.strip():
            text = part.strip()
            if normal and isinstance(normal[-1], str):
                text = f"{normal.pop()}\n{text}"
            normal.append(text)
    return tuple(normal)


@dataclass(frozen=True)
class Outline:
    """What one path is to do. White space around `text` is dropped, as in every node of a trace."""

    label: str
    text: str

    def __post_init__(self) -> None:
        _strip(self, "text")


@dataclass(frozen=True)
class Path:
    """One subtask, worked out: texts and nested blocks, in order."""

    label: str
    parts: tuple[str | Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _normal(self.parts))


@dataclass(frozen=True)
class Block:
    """A MapReduce block. `outlines[k]` and `paths[k]` carry the same label."""

    outlines: tuple[Outline, ...]
    paths: tuple[Path, ...]
    conclusion: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "outlines", tuple(self.outlines))
        object.__setattr__(self, "paths", tuple(self.paths))
        _strip(self, "conclusion")


@dataclass(frozen=True)
class Think:
    """The reasoning: texts and blocks, in order."""

    parts: tuple[str | Block, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _normal(self.parts))


@dataclass(frozen=True)
class Trace:
    """A whole response: texts, blocks, and at most one Think, in order."""

    parts: tuple[str | Block | Think, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", _normal(self.parts))


def walk(trace: Trace) -> Iterator[tuple[Block, int]]:
    """Every block with its depth (1 = not nested), in the order in which the blocks open."""
    todo: list[tuple[object, int]] = [(trace, 0)]
    while todo:
        node, depth = todo.pop()
        if isinstance(node, Block):
            depth += 1
            yield node, depth
        children = node.paths if isinstance(node, Block) else node.parts
        todo += [(child, depth) for child in reversed(children) if not isinstance(child, str)]


def num_blocks(trace: Trace) -> int:
    """How many blocks a trace has, nested ones included."""
    return sum(1 for _ in walk(trace))


def depth(trace: Trace) -> int:
    """How deep blocks nest: 0 without a block, 1 where none stands in a path."""
    return max((depth for _, depth in walk(trace)), default=0)
