"""Stage 5: Map and Reduce of every block, then every path rewritten so that it stands alone, then the trace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from mvtrain.curate.asking import Dialogue, all_of
from mvtrain.curate.distance import distance, edits_between
from mvtrain.curate.independence import references, used_results
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import read_json, unwrapped
from mvtrain.curate.records import Branching, Complaint, Complaints, Draft, Part, Rejected, Step
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.grammar import TAGS, Block, Outline, Path, Think, Trace, check, child_label, render

MAP_REDUCE, REWRITE = "map_reduce", "rewrite"
FREE_EDITS = 40
"""Characters that may change in a path however short it is: "Similarly, " can be half of a short one."""
CONTEXT = 4000
"""Characters of the text before a block that are shown; all of the question is."""
_TAG = re.compile("|".join(map(re.escape, TAGS)) + "|</?think>")
_PLACE = re.compile(r"\[\[block \d+\]\]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class MapReduceForm(BaseModel):
    outlines: list[str]
    conclusion: str


@dataclass(frozen=True)
class Framed:
    """A block with its Map and Reduce, and what stands before it."""

    block: Branching
    label: str | None
    """That of the path around it."""
    before: str
    outlines: tuple[str, ...] = ()
    conclusion: str = ""


async def rewrite(draft: Draft, dialogue: Dialogue, prompts: Prompts, limit: float) -> Draft:
    """Fills in `blocks`, `trace` and `distance`.

    Raises Rejected where a question was answered badly too often, or where the trace as a whole is not good.
    """
    found = list(_frames(draft.outline, draft, None, ""))
    _check_dependence(found, draft)
    framed = await all_of(_frame(frame, draft, dialogue, prompts) for frame in found)
    jobs = [(frame, number) for frame in framed for number in range(1, len(frame.block.paths) + 1)]
    texts = await all_of(_rewrite(*job, draft, dialogue, prompts, limit) for job in jobs)
    paths: dict[str, list[str]] = {frame.block.label: [] for frame in framed}
    for (frame, _), text in zip(jobs, texts, strict=True):
        paths[frame.block.label].append(text)
    by_label = {frame.block.label: frame for frame in framed}
    trace = Trace((Think(tuple(_assemble(draft.outline, draft, by_label, paths, None))),))
    away = _check(trace, draft, limit)
    blocks = {
        frame.block.label: {"outlines": list(frame.outlines), "paths": paths[frame.block.label],
                            "conclusion": frame.conclusion}
        for frame in framed
    }  # fmt: skip
    return replace(draft, blocks=blocks, trace=trace, distance=away)


# Map and Reduce


def _frames(parts: Sequence[Part], draft: Draft, label: str | None, before: str):
    """Every block with the label of the path around it and the text before it."""
    for part in parts:
        if isinstance(part, Branching):
            yield Framed(part, label, before)
            for number, path in enumerate(part.paths, 1):
                yield from _frames(path, draft, child_label(label, number), before)
            before += "".join(f"{_text(path, draft)}\n" for path in part.paths)
        else:
            before += f"{draft.texts[part.id]}\n"


def _text(parts: Sequence[Part], draft: Draft) -> str:
    return "\n".join(draft.texts[step.id] for step in leaves_of(parts))


async def _frame(frame: Framed, draft: Draft, dialogue: Dialogue, prompts: Prompts) -> Framed:
    paths = [_text(path, draft) for path in frame.block.paths]
    shown = "\n\n".join(f"Path {number}:\n{text}" for number, text in enumerate(paths, 1))
    content = prompts.fill(
        MAP_REDUCE, question=draft.source.question, before=frame.before[-CONTEXT:] or "(nothing)", paths=shown,
        num_paths=str(len(paths)),
    )  # fmt: skip
    known = f"{draft.source.question}\n{draft.source.chain}"
    form = await dialogue.ask(
        MAP_REDUCE, f"{MAP_REDUCE} {frame.block.label}", [{"role": "user", "content": content}],
        lambda answer: read_map_reduce(answer, len(paths), known),
    )  # fmt: skip
    return replace(frame, outlines=tuple(form.outlines), conclusion=form.conclusion)


def read_map_reduce(answer: str, num_paths: int, known: str) -> MapReduceForm:
    """Raises Complaints where outlines and paths do not fit, or the conclusion has numbers that stand nowhere."""
    form = read_json(answer, MapReduceForm)
    outlines = [_LABELLED.sub("", " ".join(outline.split())) for outline in form.outlines]
    complaints = []
    if len(outlines) != num_paths:
        complaints.append(Complaint("labels", f"{len(outlines)} outlines for {num_paths} paths"))
    if not all(outlines) or not form.conclusion.strip():
        complaints.append(Complaint("empty", "an outline or the conclusion is empty"))
    complaints += _tag_complaints("\n".join([*outlines, form.conclusion]))
    numbers = set(_NUMBER.findall(known))
    invented = [n for n in dict.fromkeys(_NUMBER.findall(form.conclusion)) if n not in numbers and len(n) > 1]
    if invented:
        complaints.append(Complaint("invented", f"the conclusion has numbers of its own: {', '.join(invented)}"))
    if complaints:
        raise Complaints(complaints)
    return MapReduceForm(outlines=outlines, conclusion=form.conclusion.strip())


_LABELLED = re.compile(r"\A\s*(?:path\s+)?\d+(?:\.\d+)*\s*[:.)]\s+", re.IGNORECASE)
"""A label that the model wrote in front of an outline or a path; ours are written when the trace is."""


def _tag_complaints(text: str) -> list[Complaint]:
    tags = list(dict.fromkeys(_TAG.findall(text)))
    return [Complaint("tags", f"the answer has tags in it: {', '.join(tags)}; write none")] if tags else []


# Paths


async def _rewrite(frame: Framed, number: int, draft: Draft, dialogue: Dialogue, prompts: Prompts, limit: float) -> str:
    """Path `number` of a block, with `[[block 1]]` where a block stands in it."""
    path = frame.block.paths[number - 1]
    original = _with_places(path, draft)
    if not _PLACE.sub("", original).strip():
        return original
    label = child_label(frame.label, number)
    others = _siblings(frame, number, draft)
    known = f"{draft.source.question}\n{frame.before}\n{frame.outlines[number - 1]}"
    content = prompts.fill(
        REWRITE, question=draft.source.question, before=frame.before[-CONTEXT:] or "(nothing)",
        outline=frame.outlines[number - 1], path=original,
    )  # fmt: skip
    return await dialogue.ask(
        REWRITE, f"{REWRITE} {frame.block.label} path {number}", [{"role": "user", "content": content}],
        lambda answer: read_path(answer, original, label, known, others, limit),
    )  # fmt: skip


def _siblings(frame: Framed, number: int, draft: Draft) -> list[tuple[str, str]]:
    """(label, text in the chain) of the other paths of a block."""
    texts = ((k, _text(path, draft)) for k, path in enumerate(frame.block.paths, 1))
    return [(child_label(frame.label, k), text) for k, text in texts if k != number]


def _check_dependence(frames: Sequence[Framed], draft: Draft) -> None:
    """Where the chain itself goes on from a sibling's result there is no group. Raises Rejected at stage 2."""
    complaints = []
    for frame in frames:
        known = f"{draft.source.question}\n{frame.before}"
        for number, path in enumerate(frame.block.paths, 1):
            steps = ", ".join(step.id for step in leaves_of(path))
            found = used_results(_text(path, draft), known, _siblings(frame, number, draft))
            complaints += [Complaint(c.kind, f"{steps} is not independent: {c.text}") for c in found]
    if complaints:
        raise Rejected("groups", complaints)


def _with_places(parts: Sequence[Part], draft: Draft) -> str:
    lines, num_blocks = [], 0
    for part in parts:
        if isinstance(part, Step):
            lines.append(draft.texts[part.id])
        else:
            num_blocks += 1
            lines.append(f"[[block {num_blocks}]]")
    return "\n".join(lines)


def read_path(
    answer: str, original: str, label: str, known: str, others: Sequence[tuple[str, str]], limit: float
) -> str:
    """Raises Complaints where a rewritten path points at a sibling, is another text, or has lost a block's place."""
    text = _LABELLED.sub("", unwrapped(answer))
    complaints = _tag_complaints(text)
    places, found = _PLACE.findall(original), _PLACE.findall(text)
    if places != found:
        complaints.append(
            Complaint("labels", f"expected {', '.join(places) or 'no [[block ..]]'}, each once, in order")
        )
    plain = _PLACE.sub(" ", text)
    edits, longer = edits_between(plain, _PLACE.sub(" ", original))
    if edits > max(limit * longer, FREE_EDITS):
        complaints.append(
            Complaint("content", f"{edits} of {longer} characters were changed, at most {limit:.0%} may be")
        )
    complaints += references(plain, label, [other for other, _ in others])
    complaints += used_results(plain, known, others)
    if complaints:
        raise Complaints(complaints)
    return text


# The trace


def _assemble(
    parts: Sequence[Part], draft: Draft, framed: dict[str, Framed], paths: dict[str, list[str]], label: str | None
) -> list[str | Block]:
    return [
        draft.texts[part.id] if isinstance(part, Step) else _block(part, draft, framed, paths, label) for part in parts
    ]


def _block(
    block: Branching, draft: Draft, framed: dict[str, Framed], paths: dict[str, list[str]], label: str | None
) -> Block:
    frame = framed[block.label]
    labels = [child_label(label, number) for number in range(1, len(block.paths) + 1)]
    outlines = [Outline(own, text) for own, text in zip(labels, frame.outlines, strict=True)]
    written = []
    for own, path, text in zip(labels, block.paths, paths[block.label], strict=True):
        inner = [_block(part, draft, framed, paths, own) for part in path if isinstance(part, Branching)]
        written.append(Path(own, tuple(_filled(text, inner))))
    return Block(tuple(outlines), tuple(written), frame.conclusion)


def _filled(text: str, inner: Sequence[Block]) -> list[str | Block]:
    """The text with blocks in their places."""
    pieces = _PLACE.split(text)
    parts: list[str | Block] = [pieces[0]]
    for block, piece in zip(inner, pieces[1:], strict=True):
        parts += [block, piece]
    return parts


def _check(trace: Trace, draft: Draft, limit: float) -> float:
    """The grammar check and the last content check; returns the distance. Raises Rejected."""
    problems = check(render(trace))
    if problems:
        raise Rejected(REWRITE, [Complaint("grammar", str(problem)) for problem in problems[:5]])
    away = distance(" ".join(_said(trace.parts[0].parts)), draft.source.chain)
    if away > limit:
        raise Rejected(
            REWRITE, [Complaint("content", f"the trace is {away:.0%} away from the chain, at most {limit:.0%}")]
        )
    return away


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
