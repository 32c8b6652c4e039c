"""Stage 5, second half: every path rewritten on its own, so that it stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from pydantic import BaseModel

from mvtrain.curate.asking import Dialogue, all_of
from mvtrain.curate.distance import changes, normal
from mvtrain.curate.independence import references, used_results, without_pointers
from mvtrain.curate.numbers import numbers_in
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import read_json, unwrapped
from mvtrain.curate.records import Complaint, Complaints, Draft, Framed, Rejected
from mvtrain.curate.stages import trace
from mvtrain.curate.stages.map_reduce import siblings_of
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.curate.stages.texts import LABELLED, PLACE, boxes_in, context_of, shown, tag_complaints, with_places
from mvtrain.grammar import child_label

NAME, JUDGE = "rewrite", "independence"
FREE_CUTS, FREE_ADDITIONS = 40, 12
"""Characters that may go, or come, in a path however short it is: "Similarly, " can be half of a short one."""


class UnknownForm(BaseModel):
    unknown: list[str]


async def rewrite_paths(draft: Draft, dialogue: Dialogue, prompts: Prompts, limit: float, judge: bool) -> Draft:
    """Fills in the paths of all `blocks`.

    With `judge` the model also says of every path, without the others, whether it uses what it cannot know.

    Raises Rejected where a path was answered badly too often; at stage 2 where that is because it is not independent.
    """
    jobs = [(frame, number) for frame in draft.blocks for number in range(1, len(frame.block.paths) + 1)]
    while True:
        texts = await all_of(_rewrite(*job, draft, dialogue, prompts, limit, judge) for job in jobs)
        left = iter(texts)
        blocks = [replace(frame, paths=tuple(next(left) for _ in frame.block.paths)) for frame in draft.blocks]
        draft = replace(draft, blocks=tuple(blocks))
        originals = [with_places(frame.block.paths[number - 1], draft) for frame, number in jobs]
        keys = [
            f"{NAME} {_key(*job)}" for job, text, original in zip(jobs, texts, originals, strict=True)
            if normal(text) != normal(original)
        ]  # fmt: skip
        if not keys or (away := trace.distance_of(draft)) <= limit:
            return draft
        together = Complaint("content", f"all texts together are {away:.0%} away from the chain, at most {limit:.0%}")
        for key in keys:
            dialogue.complain(key, [together])


async def _rewrite(
    frame: Framed, number: int, draft: Draft, dialogue: Dialogue, prompts: Prompts, limit: float, judge: bool
) -> str:
    """Path `number` of a block, with `[[block 1]]` where a block stands in it."""
    path = frame.block.paths[number - 1]
    original = with_places(path, draft)
    if not PLACE.sub("", original).strip():
        return original
    label, others = child_label(frame.label, number), siblings_of(frame, number, draft)
    outline, before = frame.outlines[number - 1], context_of(frame.before)
    # The chain's own numbers were looked at before the path was asked for.
    known = f"{draft.source.question}\n{frame.before}\n{outline}\n{original}"
    place = {"question": draft.source.question, "before": before, "outline": outline}
    key = _key(frame, number)
    messages = [{"role": "user", "content": prompts.fill(NAME, path=original, **place)}]
    try:
        for reading in count(1):
            text = await dialogue.ask(
                NAME, f"{NAME} {key}", messages,
                lambda answer: read_path(answer, original, label, known, others, limit),
            )  # fmt: skip
            unknown = await _judge(f"{JUDGE} {key} text {reading}", text, place, dialogue, prompts) if judge else []
            if not unknown:
                return text
            dialogue.complain(f"{NAME} {key}", unknown)
    except Rejected as error:
        if error.stage == NAME and all(complaint.kind == "dependent" for complaint in error.complaints):
            steps = ", ".join(step.id for step in leaves_of(path))
            told = [Complaint(c.kind, f"{steps} is not independent: {c.text}") for c in error.complaints]
            raise Rejected("groups", told) from None
        raise


def _key(frame: Framed, number: int) -> str:
    return f"{frame.block.label} path {number}"


async def _judge(key: str, text: str, place: dict[str, str], dialogue: Dialogue, prompts: Prompts) -> list[Complaint]:
    """What a rewritten path uses and cannot know, as somebody sees it who does not know the other paths either."""
    messages = [{"role": "user", "content": prompts.fill(JUDGE, path=text, **place)}]
    form = await dialogue.ask(JUDGE, key, messages, lambda answer: read_json(answer, UnknownForm))
    return [Complaint("dependent", f"it uses what it cannot know: {unknown}") for unknown in form.unknown[:8]]


def _changed_results(before: str, after: str, known: str) -> list[Complaint]:
    """Numbers that stand nowhere else, a last number that is gone, and boxes that are not the path's own."""
    own, left = numbers_in(without_pointers(before)), numbers_in(after)
    new = [number for number in dict.fromkeys(left) if number not in {*own, *numbers_in(known)}]
    found = [Complaint("content", f"numbers that are not in the text: {', '.join(new)}")] if new else []
    if own and own[-1] not in left:
        found.append(Complaint("content", f"what the path came to is gone: {own[-1]}"))
    if boxes_in(before) != boxes_in(after):
        found.append(Complaint("answer lost", f"expected {shown(boxes_in(before))}, as in the text"))
    return found


def read_path(
    answer: str, original: str, label: str, known: str, others: Sequence[tuple[str, str]], limit: float
) -> str:
    """Raises Complaints where a rewritten path points at a sibling, is another text, or has lost a block's place."""
    text = answer.strip() if "```" in original else unwrapped(answer)
    text = text if LABELLED.match(original) else LABELLED.sub("", text)
    complaints = tag_complaints(text)
    if not text:
        complaints.append(Complaint("empty", "the text of the path is missing"))
    places, found = PLACE.findall(original), PLACE.findall(text)
    if places != found:
        complaints.append(
            Complaint("labels", f"expected {', '.join(places) or 'no [[block ..]]'}, each once, in order")
        )
    plain = PLACE.sub(" ", text)
    before = PLACE.sub(" ", original)
    added, cut, longer = changes(before, plain)
    if cut > max(limit * longer, FREE_CUTS) or added > max(limit * longer, FREE_ADDITIONS):
        told = f"of {longer} characters {cut} were cut and {added} added; at most {limit:.0%} may change"
        complaints.append(Complaint("content", told))
    complaints += _changed_results(before, plain, known)
    complaints += references(plain, label, [other for other, _ in others])
    complaints += used_results(plain, known, others)
    if complaints:
        raise Complaints(complaints)
    return text
