"""What goes through the curator: a source, what the stages make of it, and how it ends. Standard library only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mvtrain.grammar import Trace


@dataclass(frozen=True)
class Source:
    """A sequential chain of thought, as people have it."""

    id: str
    question: str
    chain: str
    """The reasoning, without Think tags."""
    answer: str
    """What stands behind the reasoning; it is kept as it is."""
    reference: str | None = None
    """The right answer, where it is known."""
    where: str = ""
    """For instance `chains.jsonl row 14`."""
    fault: str = ""
    """Why the row cannot be read; all else may then be empty."""
    row: Any = None
    """All of the row as it was read, or the line that is none: a rejected record keeps it."""

    @property
    def digest(self) -> str:
        fields = [self.id, self.question, self.chain, self.answer, self.reference, self.fault]
        return hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Complaint:
    """Why an answer of the model, or a record, is not good. `kind` is the same for complaints of the same sort."""

    kind: str
    text: str

    def __str__(self) -> str:
        return self.text


class Complaints(ValueError):
    """An answer is not good, for these reasons, which are told to the model."""

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        super().__init__("; ".join(map(str, complaints)))
        self.complaints = tuple(complaints)

    @classmethod
    def of(cls, kind: str, text: str) -> Complaints:
        return cls([Complaint(kind, text)])


class Rejected(Exception):
    """A record cannot become a trace; nothing more is asked."""

    def __init__(self, stage: str, complaints: Sequence[Complaint]) -> None:
        super().__init__(f"{stage}: {'; '.join(map(str, complaints))}")
        self.stage = stage
        self.complaints = tuple(complaints)


@dataclass(frozen=True)
class Step:
    """A step of the summary tree: a run of units of the chain, in one piece or in substeps."""

    id: str
    """S2, or S2.1."""
    title: str
    first: int | None
    """Its units, counted from 1 and both included; None where the model could not point, and types the text."""
    last: int | None
    substeps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Group:
    """Neighbouring paths of which none needs another: ids of steps, path by path."""

    paths: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Branching:
    """A block of the outline: for every path its steps and blocks."""

    label: str
    """1 for the first at its level, 1.2 for the second in a path of the first: names it in what is stored and asked."""
    paths: tuple[tuple[Step | Branching, ...], ...]


Part = Step | Branching


@dataclass(frozen=True)
class Framed:
    """A block with its Map and Reduce, then with its paths, and what stands before it."""

    block: Branching
    label: str | None
    """That of the path around it."""
    before: str
    outlines: tuple[str, ...] = ()
    conclusion: str = ""
    paths: tuple[str, ...] = ()
    """Rewritten; `[[block 1]]` stands where a block is."""


@dataclass(frozen=True)
class Draft:
    """What the stages have made of a source so far. Each stage fills in the fields behind its name."""

    source: Source
    units: tuple[str, ...] = ()
    dialogue: tuple[dict[str, str], ...] = ()
    """Stages 1 and 2 are one conversation."""
    steps: tuple[Step, ...] = ()
    groups: tuple[Group, ...] = ()
    outline: tuple[Part, ...] = ()
    texts: dict[str, str] = field(default_factory=dict)
    """Text of every step without substeps, by its id."""
    blocks: tuple[Framed, ...] = ()
    trace: Trace | None = None
    distance: float = 0.0
    """Edit distance between what the trace's texts and paths say and the chain, over the longer of both."""


@dataclass(frozen=True)
class Done:
    """How a record ended."""

    number: int
    """Its place in the input, counted from 0."""
    source: Source
    status: Literal["accepted", "rejected"]
    stage: str = ""
    """Of a rejected record: where it ended."""
    complaints: tuple[Complaint, ...] = ()
    trace: str = ""
    """Of an accepted record: the reasoning with its blocks, from `<Think>` to `</Think>`."""
    distance: float | None = None
    verified: bool | None = None
    """True where the answer was found equal to the reference; None where there is none, or that cannot be told."""
    stages: dict[str, Any] = field(default_factory=dict)
    """Outputs of the stages, and what was wrong with answers that were asked for again."""
