"""Stage 4: the text of every step, copied from the chain by its units, and the content check.

Only where the model could not point it is asked to type a step's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mvtrain.curate.asking import Dialogue, all_of
from mvtrain.curate.distance import distance
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import unwrapped
from mvtrain.curate.records import Complaint, Complaints, Draft, Rejected, Step
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.curate.stages.texts import tag_complaints
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
        found = await all_of(_type(draft, leaves, i, dialogue, prompts) for i in typed)
        texts.update({leaves[i].id: text for i, text in zip(typed, found, strict=True)})
        texts = {step.id: texts[step.id] for step in leaves}
        away = distance(" ".join(texts.values()), draft.source.chain)
        if away <= limit:
            return replace(draft, texts=texts)
        complaint = Complaint("content", f"the steps together are {away:.0%} away from the chain, at most {limit:.0%}")
        if not typed:
            break
        for i in typed:
            dialogue.complain(_key(leaves[i]), [complaint])
    raise Rejected(NAME, [complaint])


async def _type(draft: Draft, leaves: Sequence[Step], i: int, dialogue: Dialogue, prompts: Prompts) -> str:
    """The text of a step as the model types it, from the units that its neighbours leave."""
    before = [step.last for step in leaves[:i] if step.last is not None]
    after = [step.first for step in leaves[i + 1 :] if step.first is not None]
    first, last = (before[-1] if before else 1), (after[0] if after else len(draft.units))
    shown = numbered(draft.units[first - 1 : last], first)
    content = prompts.fill(NAME, step=f"{leaves[i].id}: {leaves[i].title}", units=shown)
    return await dialogue.ask(NAME, _key(leaves[i]), [{"role": "user", "content": content}], read_copy)


def read_copy(answer: str) -> str:
    text = unwrapped(answer)
    complaints = tag_complaints(text)
    if not text:
        complaints.append(Complaint("empty", "the text of the step is missing"))
    if complaints:
        raise Complaints(complaints)
    return text


def _key(step: Step) -> str:
    return f"{NAME} {step.id}"
