"""Random traces as token ids, with positions and visibility worked out by another route than `mvtrain.layout`.

Each token carries the list of (block, path) pairs it stands in; two tokens see each other when no block puts them on
different paths. Positions come from a walk over the tree. Nothing here is shared with the code under test.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch

from mvtrain.layout import TagIds


@dataclass
class Tokens:
    """A document: ids, positions, and for each token the paths it stands in."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    lineages: list[tuple[tuple[int, int], ...]] = field(default_factory=list)

    def mask(self) -> torch.Tensor:
        """BoolTensor (T, T), True where query (row) may attend to key (column)."""
        kinds = sorted(set(self.lineages))
        sees = torch.tensor([[_no_block_parts(q, k) for k in kinds] for q in kinds])
        kind_T = torch.tensor([kinds.index(lineage) for lineage in self.lineages])
        return sees[kind_T][:, kind_T] & torch.ones(len(kind_T), len(kind_T)).tril().bool()


def _no_block_parts(q: tuple[tuple[int, int], ...], k: tuple[tuple[int, int], ...]) -> bool:
    paths_of_q = dict(q)
    return all(paths_of_q.get(block, path) == path for block, path in k)


class TraceWriter:
    """Writes a random trace. `separators` says how many text tokens stand between the tags around paths."""

    def __init__(self, seed: int, tags: TagIds, scheme: str, first_text_id: int = 0, num_text_ids: int = 200) -> None:
        self.random = random.Random(seed)
        self.tags = tags
        self.scheme = scheme
        self.text_ids = range(first_text_id, first_text_id + num_text_ids)
        self.tokens = Tokens()
        self.num_blocks = 0

    def document(self, max_blocks: int = 3, max_depth: int = 2, max_paths: int = 4) -> Tokens:
        position = self._text(0, (), self.random.randint(1, 6))
        for _ in range(self.random.randint(0, max_blocks)):
            position = self._block(position, (), max_depth, max_paths)
            position = self._text(position, (), self.random.randint(0, 4))
        return self.tokens

    def _emit(self, id: int, position: int, lineage: tuple) -> int:
        self.tokens.ids.append(id)
        self.tokens.positions.append(position)
        self.tokens.lineages.append(lineage)
        return position + 1

    def _text(self, position: int, lineage: tuple, count: int) -> int:
        for _ in range(count):
            position = self._emit(self.random.choice(self.text_ids), position, lineage)
        return position

    def _separator(self) -> int:
        return self.random.choice([0, 1, 1, 1, 2])

    def _block(self, position: int, lineage: tuple, depth: int, max_paths: int) -> int:
        """Returns the position after the block."""
        tags, block = self.tags, self.num_blocks
        self.num_blocks += 1
        num_paths = self.random.randint(1, max_paths)
        position = self._emit(tags.parallel, position, lineage)
        position = self._emit(tags.goal, position, lineage)
        for _ in range(num_paths):
            position = self._emit(tags.outline, position, lineage)
            position = self._text(position, lineage, self.random.randint(0, 3))
            position = self._emit(tags.end_outline, position, lineage)
        position = self._emit(tags.end_goal, position, lineage)
        fork = position  # one past </Goal>
        ends = [
            self._path(index, position if index == 0 else ends_before, fork, lineage, block, depth, max_paths)
            for index, ends_before in zip(range(num_paths), _previous(self, fork), strict=False)
        ]
        return self._join(ends, lineage)

    def _path(self, index, before, fork, lineage, block, depth, max_paths) -> int:
        """Returns the position after </Path>."""
        inside = (*lineage, (block, index))
        if self.scheme == "isolated":
            position = self._text(fork, inside, self._separator())
        else:
            self._text(before, lineage, self._separator())
            position = fork
        position = self._emit(self.tags.path, position, inside)
        position = self._text(position, inside, self.random.randint(0, 5))
        if depth > 1 and self.random.random() < 0.4:
            position = self._block(position, inside, depth - 1, max_paths)
            position = self._text(position, inside, self.random.randint(0, 3))
        self.last_end = self._emit(self.tags.end_path, position, inside)
        return self.last_end

    def _join(self, ends: list[int], lineage: tuple) -> int:
        furthest = max(ends)
        if self.scheme == "isolated":
            position = self._text(furthest, lineage, self._separator())
        else:
            self._text(ends[-1], lineage, self._separator())
            position = furthest
        position = self._emit(self.tags.conclusion, position, lineage)
        position = self._text(position, lineage, self.random.randint(0, 4))
        position = self._emit(self.tags.end_conclusion, position, lineage)
        return self._emit(self.tags.end_parallel, position, lineage)


def _previous(writer: TraceWriter, fork: int):
    """The position after the path before; for the first path, the position after </Goal>."""
    yield fork
    while True:
        yield writer.last_end


def random_document(seed: int, tags: TagIds, scheme: str = "isolated", **limits) -> Tokens:
    return TraceWriter(seed, tags, scheme).document(**limits)
