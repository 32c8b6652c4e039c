"""Stage 5, first half: Map and Reduce of every block, an outline for each path and a conclusion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import BaseModel

from mvtrain.curate.asking import Dialogue, all_of
from mvtrain.curate.independence import references, used_results
from mvtrain.curate.numbers import numbers_in
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import read_json
from mvtrain.curate.records import Branching, Complaint, Complaints, Draft, Framed, Part, Rejected
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.curate.stages.texts import LABELLED, context_of, tag_complaints, text_of
from mvtrain.grammar import child_label

NAME = "map_reduce"


class MapReduceForm(BaseModel):
    outlines: list[str]
    conclusion: str


async def frame_blocks(draft: Draft, dialogue: Dialogue, prompts: Prompts) -> Draft:
    """Fills in `blocks`, each before those in its paths. Raises Rejected at stage 2 where paths are not independent."""
    found = list(_frames(draft.outline, draft, None, ""))
    _check_dependence(found, draft)
    return replace(draft, blocks=tuple(await all_of(_frame(block, draft, dialogue, prompts) for block in found)))


def _frames(parts: Sequence[Part], draft: Draft, label: str | None, before: str) -> Iterator[Framed]:
    """Every block with the label of the path around it and the text before it."""
    for part in parts:
        if isinstance(part, Branching):
            yield Framed(part, label, before)
            for number, path in enumerate(part.paths, 1):
                yield from _frames(path, draft, child_label(label, number), before)
            before += "".join(f"{text_of(path, draft)}\n" for path in part.paths)
        else:
            before += f"{draft.texts[part.id]}\n"


def _check_dependence(frames: Sequence[Framed], draft: Draft) -> None:
    """Where the chain itself goes on from a sibling's result there is no group. Raises Rejected at stage 2."""
    complaints = []
    for frame in frames:
        known = f"{draft.source.question}\n{frame.before}"
        for number, path in enumerate(frame.block.paths, 1):
            steps = ", ".join(step.id for step in leaves_of(path))
            earlier = siblings_of(frame, number, draft)[: number - 1]  # a chain cannot use what it has not come to
            found = used_results(text_of(path, draft), known, earlier)
            complaints += [Complaint(c.kind, f"{steps} is not independent: {c.text}") for c in found]
    if complaints:
        raise Rejected("groups", complaints)


def siblings_of(frame: Framed, number: int, draft: Draft) -> list[tuple[str, str]]:
    """(label, text in the chain) of the other paths of a block."""
    texts = ((k, text_of(path, draft)) for k, path in enumerate(frame.block.paths, 1))
    return [(child_label(frame.label, k), text) for k, text in texts if k != number]


async def _frame(frame: Framed, draft: Draft, dialogue: Dialogue, prompts: Prompts) -> Framed:
    paths = [text_of(path, draft) for path in frame.block.paths]
    shown = "\n\n".join(f"Path {number}:\n{text}" for number, text in enumerate(paths, 1))
    content = prompts.fill(
        NAME, question=draft.source.question, before=context_of(frame.before), paths=shown,
        num_paths=str(len(paths)),
    )  # fmt: skip
    given = f"{draft.source.question}\n{frame.before}"
    labels = [child_label(frame.label, number) for number in range(1, len(paths) + 1)]
    form = await dialogue.ask(
        NAME, f"{NAME} {frame.block.label}", [{"role": "user", "content": content}],
        lambda answer: read_map_reduce(answer, dict(zip(labels, paths, strict=True)), given, draft.source.chain),
    )  # fmt: skip
    return replace(frame, outlines=tuple(form.outlines), conclusion=form.conclusion)


def read_map_reduce(answer: str, paths: Mapping[str, str], given: str, chain: str) -> MapReduceForm:
    """Raises Complaints where outlines and paths do not fit, an outline tells or uses what a path finds, or the
    conclusion has numbers that stand nowhere.

    Args:
        paths: label -> text in the chain.
        given: the question, and the text before the block.
    """
    form = read_json(answer, MapReduceForm)
    outlines = [LABELLED.sub("", " ".join(outline.split())) for outline in form.outlines]
    complaints = []
    if len(outlines) != len(paths):
        complaints.append(Complaint("labels", f"{len(outlines)} outlines for {len(paths)} paths"))
    complaints += _outline_complaints(outlines, paths, given)
    if not all(outlines) or not form.conclusion.strip():
        complaints.append(Complaint("empty", "an outline or the conclusion is empty"))
    complaints += tag_complaints("\n".join([*outlines, form.conclusion]))
    numbers = set(numbers_in(f"{given}\n{chain}"))
    invented = [n for n in dict.fromkeys(numbers_in(form.conclusion)) if n not in numbers and len(n) > 1]
    if invented:
        complaints.append(Complaint("invented", f"the conclusion has numbers of its own: {', '.join(invented)}"))
    if complaints:
        raise Complaints(complaints)
    return MapReduceForm(outlines=outlines, conclusion=form.conclusion.strip())


def _outline_complaints(outlines: Sequence[str], paths: Mapping[str, str], given: str) -> Iterator[Complaint]:
    """An outline stands in front of all paths, so what it tells of their work every path would know."""
    if len(set(outlines)) < len(outlines):
        yield Complaint("outline", "two outlines are the same")
    numbers = set(numbers_in(given))
    results = {found[-1] for text in paths.values() if (found := numbers_in(text))} - numbers
    for label, outline in zip(paths, outlines, strict=False):
        told = [number for number in numbers_in(outline) if number in results and len(number) > 1]
        if told:
            yield Complaint("outline", f"outline {label} tells a result: {', '.join(told)}")
        others = [other for other in paths if other != label]
        yield from (Complaint("outline", f"outline {label}: {c.text}") for c in references(outline, label, others))
