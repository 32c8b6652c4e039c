"""How much structure a set of traces has: blocks, paths, depth, length, and how much of it can run in parallel."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from mvtrain.grammar import Trace, walk

CountTokens = Callable[[Sequence[str]], list[int]]
"""Pieces of a text -> how many tokens each has."""

_CUT = re.compile(r"(?<=</Goal>)|(?<=</Path>)")
_FIRST_TAG = re.compile(r"</?(?:Goal|Path|Conclusion)>")
_WORD = re.compile(r"</?(?:Think|think|Parallel|Goal|Outline|Path|Conclusion)>|\w+|[^\w\s]")


def count_words(pieces: Sequence[str]) -> list[int]:
    """A stand-in for a tokenizer: a tag is one, a run of word characters is one, any other visible character is one."""
    return [sum(1 for _ in _WORD.finditer(piece)) for piece in pieces]


def token_counter(tokenizer: Any) -> CountTokens:
    """Count with a tokenizer. Exact where the tags are tokens of it (`mvtrain convert` adds them)."""
    return lambda pieces: [len(ids) for ids in tokenizer(list(pieces), add_special_tokens=False)["input_ids"]]


def critical_path(text: str, count: CountTokens = count_words) -> tuple[int, int]:
    """(tokens, tokens on the critical path) of a well-formed trace.

    The critical path is the text outside of paths plus, for each block, its longest path, recursively. White space
    before a `<Path>` belongs to that path, as it does in training and generation.
    """
    pieces = _CUT.split(text)
    lengths = count(pieces)
    reached = lengths[0]
    blocks: list[tuple[int, int]] = []  # (reached at the fork, length of the longest path so far) of open blocks
    for before, piece, length in zip(pieces, pieces[1:], lengths[1:], strict=False):
        if before.endswith("</Goal>"):
            blocks.append((reached, 0))
            reached = 0
        elif _FIRST_TAG.search(piece).group() == "<Path>":
            blocks[-1] = (blocks[-1][0], max(blocks[-1][1], reached))
            reached = 0
        else:
            fork, longest = blocks.pop()
            reached = fork + max(longest, reached)
        reached += length
    return sum(lengths), reached


@dataclass
class Spread:
    """Values of one quantity."""

    values: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, float]:
        """Mean, least, greatest and sum; zeros where there is no value."""
        values = self.values or [0]
        return {"mean": fmean(values), "min": min(values), "max": max(values), "sum": sum(values)}


@dataclass
class Statistics:
    """Gathered over the well-formed rows of a set. `unit` says what `tokens` counts."""

    unit: str = "words"
    count: CountTokens = count_words
    num_rows: int = 0
    num_rows_with_blocks: int = 0
    blocks_per_row: Spread = field(default_factory=Spread)
    """Of rows with blocks, as is `depth`."""
    paths_per_block: Spread = field(default_factory=Spread)
    depth: Spread = field(default_factory=Spread)
    tokens: Spread = field(default_factory=Spread)
    critical_path: Spread = field(default_factory=Spread)
    parallelism: Spread = field(default_factory=Spread)
    """tokens / critical path of each row; 1 for a row without a block."""

    def add(self, text: str, trace: Trace) -> None:
        """Count one row: its text and the tree that was parsed from it."""
        depths = []
        for block, depth in walk(trace):
            depths.append(depth)
            self.paths_per_block.values.append(len(block.paths))
        self.num_rows += 1
        if depths:
            self.num_rows_with_blocks += 1
            self.blocks_per_row.values.append(len(depths))
            self.depth.values.append(max(depths))
        total, critical = critical_path(text, self.count)
        self.tokens.values.append(total)
        self.critical_path.values.append(critical)
        self.parallelism.values.append(total / critical if critical else 1.0)

    def spreads(self) -> dict[str, Spread]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Spread)}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        counts = {"unit": self.unit, "rows": self.num_rows, "rows_with_blocks": self.num_rows_with_blocks}
        return counts | {name: spread.as_dict() for name, spread in self.spreads().items()}
