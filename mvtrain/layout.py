"""Token ids -> position ids and visibility.

Training and generation both take their positions and their mask from here, so they cannot drift apart.

A layout cuts a token sequence into *nodes*: runs of consecutive tokens that see the same earlier tokens. A token of a
node sees the node's key ranges in full and its own node up to itself. In a block of P paths that is at most a few
nodes per path, so a layout is linear in the number of blocks and never needs a T x T mask.

Shape suffixes: T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Literal, NamedTuple

import torch

from mvtrain.grammar import TAGS

Scheme = Literal["isolated", "original", "causal"]
SCHEMES: tuple[Scheme, ...] = ("isolated", "original")
TRAINING_SCHEMES: tuple[Scheme, ...] = (*SCHEMES, "causal")
"""`causal` reads no tag: the stock mask and positions, to see what a model learns without Multiverse Attention. Nothing
can be generated in parallel with it."""


class LayoutError(ValueError):
    """The tags of a token sequence do not nest as a trace's must. `index` is the offending token's index."""

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"token {index}: {message}")
        self.index = index


@dataclass(frozen=True)
class TagIds:
    """The token ids of the twelve tags."""

    think: int
    end_think: int
    parallel: int
    end_parallel: int
    goal: int
    end_goal: int
    outline: int
    end_outline: int
    path: int
    end_path: int
    conclusion: int
    end_conclusion: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Any) -> TagIds:
        """Look the tags up with `convert_tokens_to_ids`, or with `get_vocab` where that is missing.

        Raises ValueError that names the tags the tokenizer does not know as single tokens.
        """
        if hasattr(tokenizer, "convert_tokens_to_ids"):
            ids = [tokenizer.convert_tokens_to_ids(tag) for tag in TAGS]
        else:
            vocab = tokenizer.get_vocab()
            ids = [vocab.get(tag) for tag in TAGS]
        unknown = getattr(tokenizer, "unk_token_id", None)
        missing = [tag for tag, id in zip(TAGS, ids, strict=True) if id is None or id < 0 or id == unknown]
        if missing:
            raise ValueError(
                f"the tokenizer has no token for {', '.join(missing)}; "
                "add the tags with `mvtrain convert MODEL OUT` and use the converted checkpoint"
            )
        return cls(*ids)

    def as_tuple(self) -> tuple[int, ...]:
        """The ids in the order of `TAGS`."""
        return (
            self.think, self.end_think, self.parallel, self.end_parallel, self.goal, self.end_goal,
            self.outline, self.end_outline, self.path, self.end_path, self.conclusion, self.end_conclusion,
        )  # fmt: skip


class Node(NamedTuple):
    """Tokens [start, end) at positions [position, position + end - start), with one visibility."""

    start: int
    end: int
    position: int
    sees: tuple[tuple[int, int], ...]
    """Key ranges [a, b) before `start`, ascending and disjoint, that every token of the node sees in full."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Positions and visibility of one token sequence, or of several documents packed into one.

    Args:
        nodes: in token order; together they cover tokens [0, T) without a gap.
        documents: token ranges [start, end); tokens of different documents never see each other.
    """

    nodes: tuple[Node, ...]
    documents: tuple[tuple[int, int], ...]
    scheme: Scheme = "isolated"
    encoded: torch.Tensor = field(init=False, repr=False)
    """All of it as one int64 tensor on the host, for operators, which take nothing but tensors."""

    def __post_init__(self) -> None:
        # At once and not when first asked for, so that torch.compile finds a tensor.
        object.__setattr__(self, "encoded", self._encode())

    @classmethod
    def from_ids(
        cls, ids: Sequence[int] | torch.Tensor, tags: TagIds, scheme: Scheme = "isolated", start_position: int = 0
    ) -> Layout:
        """Lay one document out.

        Args:
            ids: (T,) token ids of one document.
            scheme: who sees the separators between paths, and where paths start; see docs/attention-and-positions.md.
            start_position: the position of the first token.

        Raises:
            LayoutError: a tag of a block stands where it may not, or a block is not closed.
        """
        if scheme not in TRAINING_SCHEMES:
            raise ValueError(f"unknown scheme {scheme!r}; choose one of {', '.join(TRAINING_SCHEMES)}")
        ids_T = torch.as_tensor(ids, dtype=torch.long)
        if ids_T.dim() != 1:
            raise ValueError(f"expected the ids of one document, shape (T,), got shape {tuple(ids_T.shape)}")
        builder = _Builder(scheme, start_position)
        for index, kind in _block_tags(ids_T, tags) if scheme != "causal" else ():
            builder.tag(index, kind)
        num_tokens = len(ids_T)
        return cls(tuple(builder.finish(num_tokens)), ((0, num_tokens),) if num_tokens else (), scheme)

    @classmethod
    def pack(cls, layouts: Sequence[Layout]) -> Layout:
        """Put layouts behind each other. Documents keep their own positions and do not see each other."""
        schemes = {layout.scheme for layout in layouts}
        if len(schemes) != 1:
            raise ValueError(f"cannot pack layouts of {len(schemes)} schemes; give one or more of the same scheme")
        nodes: list[Node] = []
        documents: list[tuple[int, int]] = []
        offset = 0
        for layout in layouts:
            nodes += [
                Node(n.start + offset, n.end + offset, n.position, tuple((a + offset, b + offset) for a, b in n.sees))
                for n in layout.nodes
            ]
            documents += [(start + offset, end + offset) for start, end in layout.documents]
            offset += layout.num_tokens
        return cls(tuple(nodes), tuple(documents), schemes.pop())

    @property
    def num_tokens(self) -> int:
        return self.nodes[-1].end if self.nodes else 0

    @cached_property
    def position_ids(self) -> torch.Tensor:
        """LongTensor (T,)."""
        if not self.nodes:
            return torch.empty(0, dtype=torch.long)
        start_N = torch.tensor([n.start for n in self.nodes])
        length_N = torch.tensor([n.end - n.start for n in self.nodes])
        shift_N = torch.tensor([n.position for n in self.nodes]) - start_N
        return torch.arange(self.num_tokens) + torch.repeat_interleave(shift_N, length_N)

    @cached_property
    def num_visible_pairs(self) -> int:
        """How many (query, key) pairs attention computes: the cost of a layout, exactly."""
        total = 0
        for node in self.nodes:
            length = node.end - node.start
            total += length * sum(b - a for a, b in node.sees) + length * (length + 1) // 2
        return total

    def _encode(self) -> torch.Tensor:
        numbers = [TRAINING_SCHEMES.index(self.scheme), len(self.documents), *chain.from_iterable(self.documents)]
        for start, end, position, sees in self.nodes:
            numbers += [start, end, position, len(sees), *chain.from_iterable(sees)]
        return torch.tensor(numbers)

    @classmethod
    def decode(cls, encoded: torch.Tensor) -> Layout:
        """The layout that `encoded` describes."""
        numbers = iter(encoded.tolist())
        scheme = TRAINING_SCHEMES[next(numbers)]
        documents = _read_pairs(numbers, next(numbers))
        nodes = []
        for start in numbers:
            end, position, num_sees = next(numbers), next(numbers), next(numbers)
            nodes.append(Node(start, end, position, _read_pairs(numbers, num_sees)))
        return cls(tuple(nodes), documents, scheme)

    def dense_mask(self) -> torch.Tensor:
        """BoolTensor (T, T), True where query (row) may attend to key (column). For tests and small sizes only."""
        mask_TT = torch.zeros(self.num_tokens, self.num_tokens, dtype=torch.bool)
        for node in self.nodes:
            for a, b in node.sees:
                mask_TT[node.start : node.end, a:b] = True
            length = node.end - node.start
            mask_TT[node.start : node.end, node.start : node.end] = torch.ones(length, length).tril().bool()
        return mask_TT


def _read_pairs(numbers: Iterator[int], count: int) -> tuple[tuple[int, int], ...]:
    return tuple((next(numbers), next(numbers)) for _ in range(count))


# What a tag does to the layout. Think and Outline change neither positions nor visibility.
_LAYOUT_TAGS = ("parallel", "end_parallel", "goal", "end_goal", "path", "end_path", "conclusion", "end_conclusion")


def _block_tags(ids_T: torch.Tensor, tags: TagIds) -> list[tuple[int, str]]:
    """(index, kind) of every tag that matters to the layout, in token order."""
    kinds = {getattr(tags, kind): kind for kind in _LAYOUT_TAGS}
    found_T = torch.isin(ids_T, torch.tensor(list(kinds)))
    indices = found_T.nonzero().flatten()
    return [(i, kinds[id]) for i, id in zip(indices.tolist(), ids_T[indices].tolist(), strict=True)]


class _Block:
    """A block that is being read."""

    def __init__(self, opened: int) -> None:
        self.opened = opened
        self.sees: tuple[tuple[int, int], ...] = ()  # what every path of the block sees of the text before the paths
        self.stage = "parallel"  # the last of the block's own tags that was read
        self.fork_position = 0  # position of </Goal>
        self.last_position = 0  # the furthest position any path reached
        self.paths: list[tuple[int, int]] = []  # token ranges that siblings do not see


# Where each tag may stand: the stage of the innermost block that it needs, and the stage that it leads to.
_TRANSITIONS = {
    "goal": ({"parallel"}, "goal"),
    "end_goal": ({"goal"}, "end_goal"),
    "path": ({"end_goal", "end_path"}, "path"),
    "end_path": ({"path"}, "end_path"),
    "conclusion": ({"end_path"}, "conclusion"),
    "end_conclusion": ({"conclusion"}, "end_conclusion"),
    "end_parallel": ({"end_conclusion"}, "closed"),
}
_EXPECTED = {
    "parallel": "<Goal>",
    "goal": "</Goal>",
    "end_goal": "<Path>",
    "path": "</Path> or <Parallel>",
    "end_path": "<Path> or <Conclusion>",
    "conclusion": "</Conclusion>",
    "end_conclusion": "</Parallel>",
}
_TEXT = {"end_" + name.lower(): f"</{name}>" for name in ("Parallel", "Goal", "Path", "Conclusion")} | {
    name.lower(): f"<{name}>" for name in ("Parallel", "Goal", "Path", "Conclusion")
}


class _Builder:
    """Reads the tags of one document in order and cuts it into nodes.

    `sees` is always what the tokens from `start` on see of the tokens before `start`. A node ends where that changes
    or where positions jump.
    """

    def __init__(self, scheme: Scheme, start_position: int) -> None:
        self.isolated = scheme == "isolated"
        self.nodes: list[Node] = []
        self.start = 0
        self.position = start_position
        self.sees: tuple[tuple[int, int], ...] = ()
        self.blocks: list[_Block] = []
        self.separator = 0  # first token after the last </Goal> or </Path>

    def tag(self, index: int, kind: str) -> None:
        if kind == "parallel":
            if self.blocks and self.blocks[-1].stage != "path":
                raise LayoutError(index, f"<Parallel> found, expected {_EXPECTED[self.blocks[-1].stage]}")
            self.blocks.append(_Block(index))
            return
        before, after = _TRANSITIONS[kind]
        if not self.blocks:
            raise LayoutError(index, f"{_TEXT[kind]} found outside of a <Parallel> block")
        block = self.blocks[-1]
        if block.stage not in before:
            raise LayoutError(
                index, f"{_TEXT[kind]} found, expected {_EXPECTED[block.stage]} (block opened at token {block.opened})"
            )
        step = getattr(self, f"_{kind}", None)
        if step is not None:
            step(index, block)
        block.stage = after

    def finish(self, num_tokens: int) -> list[Node]:
        if self.blocks:
            block = self.blocks[-1]
            raise LayoutError(
                num_tokens, f"the text ends, expected {_EXPECTED[block.stage]} (block opened at token {block.opened})"
            )
        self._end_node(num_tokens)
        return self.nodes

    def _end_goal(self, index: int, block: _Block) -> None:
        block.fork_position = self._position_of(index)
        self.separator = index + 1

    def _path(self, index: int, block: _Block) -> None:
        begin = self.separator if self.isolated else index
        self._end_node(begin)
        if not block.paths:
            block.sees = self.sees  # everything up to here is what all paths of the block see
        self.sees = block.sees if self.isolated else _without(block.sees, block.paths, begin)
        self.position = block.fork_position + 1
        block.paths.append((begin, begin))

    def _end_path(self, index: int, block: _Block) -> None:
        block.last_position = max(block.last_position, self._position_of(index))
        block.paths[-1] = (block.paths[-1][0], index + 1)
        self.separator = index + 1
        if not self.isolated:
            # The separator counts on from its path and sees everything that is not hidden around the block.
            position = self._position_of(index) + 1
            self._end_node(index + 1)
            self.sees, self.position = self._after_paths(block, index + 1), position

    def _conclusion(self, index: int, block: _Block) -> None:
        begin = self.separator if self.isolated else index
        self._end_node(begin)
        self.sees, self.position = self._after_paths(block, begin), block.last_position + 1

    def _end_parallel(self, index: int, block: _Block) -> None:
        self.blocks.pop()

    def _after_paths(self, block: _Block, begin: int) -> tuple[tuple[int, int], ...]:
        """What the text around the block sees, all paths included."""
        return _merge((*block.sees, (block.paths[0][0], begin)))

    def _position_of(self, index: int) -> int:
        return self.position + index - self.start

    def _end_node(self, end: int) -> None:
        if end > self.start:
            self.nodes.append(Node(self.start, end, self.position, self.sees))
            self.sees = _merge((*self.sees, (self.start, end)))
            self.position += end - self.start
            self.start = end


def _merge(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """Join ascending ranges that touch, and drop empty ones."""
    merged: list[tuple[int, int]] = []
    for a, b in ranges:
        if a == b:
            continue
        if merged and merged[-1][1] == a:
            merged[-1] = (merged[-1][0], b)
        else:
            merged.append((a, b))
    return tuple(merged)


def _without(sees: tuple[tuple[int, int], ...], paths: list[tuple[int, int]], end: int) -> tuple[tuple[int, int], ...]:
    """`sees`, and of the tokens from the first of `paths` to `end` those that stand in none of them."""
    edges = [*(edge for path in paths for edge in path), end][1:]
    return _merge((*sees, *zip(edges[::2], edges[1::2], strict=True))) if paths else sees
