"""A branch: one row of text that grows token by token. The root is a branch, and so is every path.

Every branch writes its tokens into a node of its own. A token of the KV cache is known by (node, index in the node),
and a branch sees it if and only if index < limits[node]. A fork copies the limits of the parent as they are at
`</Goal>`; a join raises the parent's limits for the nodes of the paths. Nothing in the cache moves.

Which tokens have gone through the model is one number per branch, `num_fed`. So a request that lost its place in the
cache sets it back, and its tokens go through the model again, with the limits that each of them had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mvtrain.engine.request import Request

ALL = np.iinfo(np.int32).max - 1
"""A limit above every index: the node is seen in full. Slots that hold nothing have a larger index still."""


@dataclass(eq=False)
class Branch:
    """The state of one branch. `tokens`, `positions`, `logprobs` and `passes` run in parallel and leave out the prompt.

    An index counts the tokens of the branch's node from 0, and an offset those in `tokens`: the two differ by the
    length of the prompt at the root, and are the same elsewhere.
    """

    request: Request
    node: int
    limits: np.ndarray
    """(nodes,) int32, of the next token. Nodes beyond its end are not seen; the entry of the own node is not used."""
    position: int
    """Where the next token goes."""
    position_limit: int
    """The first position that is out of the branch's budget."""
    first_index: int = 0
    """The index of tokens[0]."""
    parent: Branch | None = None
    label: str | None = None
    lineage: tuple[int, ...] = ()
    """(block, path, block, path, ...) from the root down, each counted from 0 in its branch."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    """The pass of the request after which each token was there."""
    top_logprobs: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    """Offset -> the most probable tokens there, where they were asked for."""
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
    blank: bool = True
    """Whether the branch has sampled nothing but white space."""
    ended_by: str = ""
    """Of a path that is done: "end_path", "end_of_text", "stop", "limit", "parent" or "answer"."""
    num_fed: int = 0
    """How many tokens of the node are in the cache: the index of the next one that goes through the model."""
    num_sampled: int = 0
    num_blocks: int = 0
    _openings: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """(index, the limits of the tokens before it, back to the opening before): one entry per join."""

    @property
    def depth(self) -> int:
        return len(self.lineage) // 2

    @property
    def name(self) -> str:
        return f"path {self.label}" if self.label else "the top level"

    @property
    def next_index(self) -> int:
        return self.first_index + len(self.tokens)

    @property
    def num_pending(self) -> int:
        return self.next_index - self.num_fed

    @property
    def needs_token(self) -> bool:
        """Whether the branch goes on by sampling, once what is pending has gone through the model."""
        return not self.done and self.stage != "forked"

    def append(self, token: int, logprob: float | None, opens: Sequence[int] = ()) -> None:
        """Add a token at the next position. `logprob` is None where the token is forced.

        `opens` are nodes that the branch sees in full from this token on: paths that are joined before it.
        """
        if opens:
            self._openings.append((self.next_index, self.limits))
            self.limits = _opened(self.limits, opens)
        self.tokens.append(token)
        self.positions.append(self.position)
        self.logprobs.append(logprob)
        self.position += 1

    def limits_of_fork(self) -> np.ndarray:
        """The limits of paths that start here: all that the branch sees, and all that it has written so far."""
        limits = _opened(self.limits, (self.node,))
        limits[self.node] = self.next_index
        return limits

    def limits_at(self, index: int) -> tuple[np.ndarray, int]:
        """The limits of the token at `index`, and the first index after it that has others."""
        for opening, limits in self._openings:
            if index < opening:
                return limits, opening
        return self.limits, self.next_index

    def ids_between(self, start: int, end: int) -> list[int]:
        return self._between(self.request.prompt, self.tokens, start, end)

    def positions_between(self, start: int, end: int) -> list[int]:
        return self._between(range(len(self.request.prompt)), self.positions, start, end)

    def _between(self, prompt: Sequence[int], written: list[int], start: int, end: int) -> list[int]:
        first = self.first_index
        if start >= first:
            return written[start - first : end - first]
        return [*prompt[start:end], *written[: max(0, end - first)]]

    def pending_in_text_order(self) -> Iterator[tuple[Branch, int, int]]:
        """(branch, start, end): runs of pending indices from here down. No token sees one that comes after it."""
        start = self.num_fed
        for offset, child in self.children:
            index = self.first_index + offset
            if index > start:
                yield self, start, index
                start = index
            yield from child.pending_in_text_order()
        if self.next_index > start:
            yield self, start, self.next_index

    def in_text_order(self) -> Iterator[tuple[Branch, int]]:
        """(branch, offset) of every generated token from here down, in the order of the text."""
        start = 0
        for offset, child in self.children:
            yield from ((self, i) for i in range(start, offset))
            yield from child.in_text_order()
            start = offset
        yield from ((self, i) for i in range(start, len(self.tokens)))

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it, parents first, in the order of the text."""
        yield self
        for _, child in self.children:
            yield from child.walk()


def _opened(limits: np.ndarray, nodes: Sequence[int]) -> np.ndarray:
    """A copy of `limits` that sees `nodes` in full. Siblings share their limits, so none are changed in place."""
    opened = np.zeros(max(len(limits), max(nodes) + 1), dtype=np.int32)
    opened[: len(limits)] = limits
    opened[list(nodes)] = ALL
    return opened
