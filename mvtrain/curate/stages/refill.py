"""Stage 4: the text of every step, copied from the chain by its units, and the content check.

Only where the model could not point it is asked to type a step's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mvtrain.curate.asking import Dialogue, all_of
from mvtrain.curate.distance import changes, distance
from mvtrain.curate.numbers import numbers_in
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import unwrapped
from mvtrain.curate.records import Complaint, Complaints, Draft, Rejected, Step
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.curate.stages.texts import boxes_in, shown, tag_complaints
from mvtrain.curate.units import numbered

NAME = "refill"


async def refill(draft: Draft, dialogue: Dialogue, prompts: Prompts, limit: float) -> Draft:
    """Fills in `texts`. All of them together are the chain, up to an edit distance of `limit` of its length.

    Raises Rejected where text that had to be typed stays further away.
    """
    leaves = list(leaves_of(draft.outline))
    typed = [i for i, step in enumerate(leaves) if step.first is None]
    pointed = [step for step in leaves if step.first is not None]
    texts = {step.id: "".join(draft.units[step.first - 1 : step.last]).strip() for step in pointed}
    for _ in range(dialogue.tries):
        found = await all_of(_type(draft, leaves, i, dialogue, prompts, limit) for i in typed)
        texts.update({leaves[i].id: text for i, text in zip(typed, found, strict=True)})
        texts = {step.id: texts[step.id] for step in leaves}
        complaints = list(_faults_of_all(" ".join(texts.values()), draft.source.chain, limit))
        if not complaints:
            return replace(draft, texts=texts)
        if not typed:
            break
        for i in typed:
            dialogue.complain(_key(leaves[i]), complaints)
    raise Rejected(NAME, complaints)


def _faults_of_all(text: str, chain: str, limit: float) -> Iterator[Complaint]:
    """What is wrong with the texts of all steps behind each other."""
    away = distance(text, chain)
    if away > limit:
        yield Complaint("content", f"the steps together are {away:.0%} away from the chain, at most {limit:.0%}")
    before, after = boxes_in(chain), boxes_in(text)
    if before != after:
        yield Complaint("answer lost", f"the steps together have {shown(after)}, the chain has {shown(before)}")


async def _type(
    draft: Draft, leaves: Sequence[Step], i: int, dialogue: Dialogue, prompts: Prompts, limit: float
) -> str:
    """The text of a step as the model types it, from the units that its neighbours leave."""
    before = [step.last for step in leaves[:i] if step.last is not None]
    after = [step.first for step in leaves[i + 1 :] if step.first is not None]
    first, last = (before[-1] if before else 1), (after[0] if after else len(draft.units))
    lines = numbered(draft.units[first - 1 : last], first)
    content = prompts.fill(NAME, step=f"{leaves[i].id}: {leaves[i].title}", units=lines)
    given = "".join(draft.units[first - 1 : last])
    question = [{"role": "user", "content": content}]
    return await dialogue.ask(NAME, _key(leaves[i]), question, lambda answer: read_copy(answer, given, limit))


def read_copy(answer: str, given: str, limit: float) -> str:
    """Raises Complaints where a typed step is empty, or says what does not stand in the units that it is copied from.

    Args:
        given: those units. They may hold more than the step.
        limit: of the step's characters, the share that may be its own.
    """
    text = unwrapped(answer)
    complaints = tag_complaints(text)
    if not text:
        complaints.append(Complaint("empty", "the text of the step is missing"))
    added, _, _ = changes(given, text)
    if added > limit * len(text):
        complaints.append(Complaint("content", f"{added} of {len(text)} characters are not in the units; copy them"))
    new = [number for number in dict.fromkeys(numbers_in(text)) if number not in numbers_in(given)]
    if new:
        complaints.append(Complaint("content", f"numbers that are not in the units: {', '.join(new)}"))
    if complaints:
        raise Complaints(complaints)
    return text


def _key(step: Step) -> str:
    return f"{NAME} {step.id}"
