"""The trace: blocks with their outlines, paths and conclusions put where the outline has them, and the last checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mvtrain.curate.distance import distance
from mvtrain.curate.records import Branching, Complaint, Draft, Framed, Part, Rejected, Step
from mvtrain.curate.stages.texts import PLACE
from mvtrain.grammar import Block, Outline, Path, Think, Trace, check, child_label, render

NAME = "trace"


def assemble(draft: Draft, limit: float) -> Draft:
    """Fills in `trace` and `distance`. Raises Rejected where grammar or content are not good."""
    trace = _trace(draft)
    return replace(draft, trace=trace, distance=_check(trace, draft, limit))


def distance_of(draft: Draft) -> float:
    """Edit distance between what the trace of a draft says and the chain, over the longer of both."""
    return _distance(_trace(draft), draft)


def _trace(draft: Draft) -> Trace:
    framed = {frame.block.label: frame for frame in draft.blocks}
    return Trace((Think(tuple(_assemble(draft.outline, draft, framed))),))


def _assemble(parts: Sequence[Part], draft: Draft, framed: Mapping[str, Framed]) -> list[str | Block]:
    return [draft.texts[part.id] if isinstance(part, Step) else _block(part, framed) for part in parts]


def _block(block: Branching, framed: Mapping[str, Framed]) -> Block:
    frame = framed[block.label]
    labels = [child_label(frame.label, number) for number in range(1, len(block.paths) + 1)]
    outlines = [Outline(own, text) for own, text in zip(labels, frame.outlines, strict=True)]
    paths = []
    for own, path, text in zip(labels, block.paths, frame.paths, strict=True):
        inner = [_block(part, framed) for part in path if isinstance(part, Branching)]
        paths.append(Path(own, tuple(_filled(text, inner))))
    return Block(tuple(outlines), tuple(paths), frame.conclusion)


def _filled(text: str, inner: Sequence[Block]) -> list[str | Block]:
    """The text with blocks in their places."""
    pieces = PLACE.split(text)
    parts: list[str | Block] = [pieces[0]]
    for block, piece in zip(inner, pieces[1:], strict=True):
        parts += [block, piece]
    return parts


def _check(trace: Trace, draft: Draft, limit: float) -> float:
    """The grammar check and the last content check; returns the distance. Raises Rejected."""
    problems = check(render(trace))
    if problems:
        raise Rejected(NAME, [Complaint("grammar", str(problem)) for problem in problems[:5]])
    away = _distance(trace, draft)
    if away > limit:
        raise Rejected(
            NAME, [Complaint("content", f"the trace is {away:.0%} away from the chain, at most {limit:.0%}")]
        )
    return away


def _distance(trace: Trace, draft: Draft) -> float:
    return distance(" ".join(_said(trace.parts[0].parts)), draft.source.chain)


def _said(parts: Sequence[str | Block]) -> list[str]:
    """The texts of a trace outside of outlines and conclusions."""
    return [
        text
        for part in parts
        for text in ([part] if isinstance(part, str) else [t for path in part.paths for t in _said(path.parts)])
    ]


def plain_text(draft: Draft) -> str:
    """What the trace says outside of outlines and conclusions."""
    return "\n".join(_said(draft.trace.parts[0].parts)) if draft.trace else ""
