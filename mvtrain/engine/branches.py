"""A branch: one row of text that grows token by token. The root is a branch, and so is every path.

Every branch writes its tokens into a node of its own. A token of the KV cache is known by (node, index in the node),
and a branch sees it if and only if index < limits[node]. A fork copies the limits of the parent as they are at
`</Goal>`; a join raises the parent's limits for the nodes of the paths. Nothing in the cache moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from mvtrain.engine.request import Request

ALL = np.iinfo(np.int32).max - 1
"""A limit above every index: the node is seen in full. Slots that hold nothing have a larger index still."""


class PendingToken(NamedTuple):
    """A token that is part of the text and has not gone through the model yet."""

    token: int
    position: int
    index: int
    """Its place in the branch's node."""
    opens: tuple[int, ...]
    """Nodes that become visible with this token: paths that are joined before it."""


@dataclass(eq=False)
class Branch:
    """The state of one branch. `tokens`, `positions` and `logprobs` run in parallel and leave out the prompt."""

    request: Request
    node: int
    limits: np.ndarray
    """(nodes,) int32. Nodes beyond its end are not seen; the entry of the own node is not used."""
    position: int
    """Where the next token goes."""
    parent: Branch | None = None
    label: str | None = None
    lineage: tuple[int, ...] = ()
    """(block, path, block, path, ...) from the root down, each counted from 0 in its branch."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    pending: list[PendingToken] = field(default_factory=list)
    plain: set[int] = field(default_factory=set)
    """Offsets in `tokens` of tags that have no effect."""

    children: list[tuple[int, Branch]] = field(default_factory=list)
    """(offset, path): the path stands in the text before tokens[offset]."""
    paths: list[Branch] = field(default_factory=list)
    """The paths of the block that is open, while they are generated."""
    num_running: int = 0
    """How many of `paths` are not done."""
    joined: list[int] = field(default_factory=list)
    """Nodes of all paths that have been joined into this branch."""
    stage: str = "text"
    """"text", or the last tag of the open block: "parallel", "goal", "forked", "conclusion", "end_conclusion"."""
    open_tags: list[int] = field(default_factory=list)
    """Offsets in `tokens` of the tags of a block that has not forked yet."""
    done: bool = False
    next_index: int = 0
    num_sampled: int = 0
    num_blocks: int = 0

    @property
    def depth(self) -> int:
        return len(self.lineage) // 2

    @property
    def name(self) -> str:
        return f"path {self.label}" if self.label else "the top level"

    @property
    def needs_token(self) -> bool:
        """Whether the branch goes on by sampling, once what is pending has gone through the model."""
        return not self.done and self.stage != "forked"

    def feed(self, token: int, position: int, opens: tuple[int, ...] = ()) -> None:
        """Queue a token for the model, without adding it to the generated text."""
        self.pending.append(PendingToken(token, position, self.next_index, opens))
        self.next_index += 1

    def append(self, token: int, logprob: float | None, opens: tuple[int, ...] = ()) -> None:
        """Add a token at the next position. `logprob` is None where the token is forced."""
        self.tokens.append(token)
        self.positions.append(self.position)
        self.logprobs.append(logprob)
        self.feed(token, self.position, opens)
        self.position += 1

    def take_pending(self, count: int) -> list[tuple[PendingToken, np.ndarray]]:
        """The next `count` pending tokens with the limits of each, (nodes,) int32, the own node cut after the token."""
        taken, self.pending = self.pending[:count], self.pending[count:]
        rows = []
        for item in taken:
            if item.opens:
                self.limits = _opened(self.limits, item.opens)
            limits = np.zeros(max(len(self.limits), self.node + 1), dtype=np.int32)
            limits[: len(self.limits)] = self.limits
            limits[self.node] = item.index + 1
            rows.append((item, limits))
        return rows

    def limits_of_fork(self) -> np.ndarray:
        """The limits of paths that start here: all that the branch sees, and all that it has written so far."""
        limits = _opened(self.limits, (self.node,))
        for item in self.pending:
            if item.opens:
                limits = _opened(limits, item.opens)
        limits[self.node] = self.next_index
        return limits

    def in_text_order(self) -> Iterator[tuple[Branch, int]]:
        """(branch, offset) of every generated token from here down, in the order of the text."""
        start = 0
        for offset, child in self.children:
            yield from ((self, i) for i in range(start, offset))
            yield from child.in_text_order()
            start = offset
        yield from ((self, i) for i in range(start, len(self.tokens)))

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, parents first."""
        yield self
        for _, child in self.children:
            yield from child.walk()


def _opened(limits: np.ndarray, nodes: Sequence[int]) -> np.ndarray:
    """A copy of `limits` that sees `nodes` in full. Siblings share their limits, so none are changed in place."""
    opened = np.zeros(max(len(limits), max(nodes) + 1), dtype=np.int32)
    opened[: len(limits)] = limits
    opened[list(nodes)] = ALL
    return opened
