"""One record from source to trace. An answer that turns out to be bad later is asked for again, with the reasons."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from mvtrain.curate.asking import Client, Dialogue
from mvtrain.curate.faults import RequestFailed
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.records import Complaint, Done, Draft, Rejected, Source
from mvtrain.curate.stages import groups, map_reduce, outline, refill, rewrite, summary, trace
from mvtrain.curate.stages.texts import markup_in
from mvtrain.curate.units import at_most, split_units
from mvtrain.grammar import render

STAGES = (summary.NAME, groups.NAME, refill.NAME, map_reduce.NAME, rewrite.NAME, rewrite.JUDGE)
"""Names of what asks the model, in order; the outline between groups and refill follows from both."""

RECORD_ERRORS = (KeyError, IndexError, TypeError, AttributeError, AssertionError, RecursionError)
"""Faults of ours that an odd record may bring to light: it is rejected, and all others go on."""
SameAnswer = Callable[[str, str], Awaitable["bool | None"]]
"""Whether an answer is the reference; None where that cannot be told."""
FinalAnswer = Callable[[str], "str | None"]
"""The answer that a text ends in, if it has one."""


@dataclass(frozen=True)
class CurateSettings:
    """How traces are made, apart from who answers."""

    limit: float = 0.2
    """Edit distance between trace and chain over their length, at most. The paper's."""
    tries: int = 3
    """How often a question is asked before its record is given up."""
    max_tokens: int = 16_384
    """Limit on each answer of the model."""
    keep_sequential: bool = False
    """Whether a chain without anything parallel becomes a trace without a block, instead of being rejected."""
    judge: bool = True
    """Whether the model is asked of every rewritten path if it uses what it cannot know."""
    most_units: int = 600
    """Of longer chains several neighbouring units become one, so that a model can keep them in view."""

    def __post_init__(self) -> None:
        for name, low, high in (("limit", 0, 1), ("tries", 1, 100), ("max_tokens", 1, 10**7), ("most_units", 1, 10**7)):
            value = getattr(self, name)
            kind = (int, float) if name == "limit" else int
            if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
                what = "a number" if name == "limit" else "a count"
                raise ValueError(f"{name} is {value!r}; expected {what}, {low} to {high}")
        for name in ("keep_sequential", "judge"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected true or false")


@dataclass
class Curator:
    """Everything that all records share."""

    client: Client
    prompts: Prompts
    settings: CurateSettings
    same_answer: SameAnswer
    final_answer: FinalAnswer
    on_stage: Callable[[str, str], None] = lambda stage, what: None
    """Called with a stage and "begin", "end" or "retry"."""

    async def curate(self, number: int, source: Source) -> Done:
        """Never raises for what is wrong with a record. What ends the run (no endpoint, the ceiling) goes through."""
        dialogue = Dialogue(
            self.client, self.settings.tries, self.settings.max_tokens, lambda stage: self.on_stage(stage, "retry")
        )
        draft = Draft(source)
        try:
            verified = await self._check_source(source)
            draft = Draft(source, at_most(split_units(source.chain), self.settings.most_units))
            draft = await self._make(draft, dialogue)
        except Rejected as error:
            stages = _stages(draft, dialogue)
            return Done(number, source, "rejected", error.stage, tuple(error.complaints), stages=stages)
        except RequestFailed as error:
            complaint = Complaint("endpoint", str(error))
            return Done(number, source, "rejected", "endpoint", (complaint,), stages=_stages(draft, dialogue))
        except RECORD_ERRORS as error:
            complaint = Complaint("internal", f"{type(error).__name__}: {error}")
            return Done(number, source, "rejected", "internal", (complaint,), stages=_stages(draft, dialogue))
        return Done(
            number, source, "accepted", trace=render(draft.trace), distance=draft.distance, verified=verified,
            stages=_stages(draft, dialogue),
        )  # fmt: skip

    async def _check_source(self, source: Source) -> bool | None:
        """Before anything is spent. True: the answer is the reference; None: there is none, or that cannot be told."""
        if source.fault:
            raise Rejected("source", [Complaint("unreadable", source.fault)])
        for name in ("question", "chain", "answer"):
            text = getattr(source, name)
            if not text.strip():
                raise Rejected("source", [Complaint("empty", f"the {name} is empty")])
            found = markup_in(text)
            if found:
                raise Rejected("source", [Complaint("tags", f"the {name} has {found} in it")])
        boxed = self.final_answer(source.chain)
        if boxed is not None and await self.same_answer(source.answer, boxed) is False:
            wrong = f"the chain ends in {_short(boxed)}, its answer is {_short(source.answer)}"
            raise Rejected("source", [Complaint("wrong answer", wrong)])
        if not source.reference:
            return None
        same = await self.same_answer(source.answer, source.reference)
        if same is False:
            wrong = f"the answer {_short(source.answer)} is not the reference {_short(source.reference)}"
            raise Rejected("source", [Complaint("wrong answer", wrong)])
        return same

    async def _make(self, draft: Draft, dialogue: Dialogue) -> Draft:
        """All stages. A group that proves dependent sends the record back to stage 2, as often as it has tries."""
        draft = await self._timed(summary.NAME, summary.summarise(draft, dialogue, self.prompts))
        while True:
            try:
                return await self._from_groups(draft, dialogue)
            except Rejected as error:
                # Where the last answer has complaints already, its tries are used up.
                if error.stage != groups.NAME or dialogue.asked[groups.NAME][-1].complaints:
                    raise
                dialogue.complain(groups.NAME, error.complaints)
                dialogue.forget(keep=(summary.NAME, groups.NAME))
                self.on_stage(groups.NAME, "retry")

    async def _from_groups(self, draft: Draft, dialogue: Dialogue) -> Draft:
        settings = self.settings
        draft = await self._timed(groups.NAME, groups.find_groups(draft, dialogue, self.prompts))
        if not draft.groups and not settings.keep_sequential:
            raise Rejected("outline", [Complaint("nothing parallel", "no neighbouring steps are independent")])
        draft = outline.draw_outline(draft)
        draft = await self._timed(refill.NAME, refill.refill(draft, dialogue, self.prompts, settings.limit))
        draft = await self._timed(map_reduce.NAME, map_reduce.frame_blocks(draft, dialogue, self.prompts))
        paths = rewrite.rewrite_paths(draft, dialogue, self.prompts, settings.limit, settings.judge)
        draft = await self._timed(rewrite.NAME, paths)
        draft = trace.assemble(draft, settings.limit)
        await self._check_answer(draft)
        return draft

    async def _check_answer(self, draft: Draft) -> None:
        """A final answer within the chain is still there, and the same."""
        before, after = self.final_answer(draft.source.chain), self.final_answer(trace.plain_text(draft))
        if before is None or before == after:
            return
        if after is None or await self.same_answer(after, before) is False:
            text = f"the chain ends in {_short(before)}, the trace in {_short(after or 'nothing')}"
            raise Rejected(trace.NAME, [Complaint("answer lost", text)])

    async def _timed(self, stage: str, work: Any) -> Draft:
        self.on_stage(stage, "begin")
        try:
            return await work
        finally:
            self.on_stage(stage, "end")


def _stages(draft: Draft, dialogue: Dialogue) -> dict[str, Any]:
    """For people who look at what happened. Nothing that differs between two runs with the same answers."""
    found: dict[str, Any] = {"faulty_answers": dialogue.log()}
    if draft.steps:
        found[summary.NAME] = [asdict(step) for step in draft.steps]
    if draft.groups:
        found[groups.NAME] = [group.paths for group in draft.groups]
    if draft.outline:
        found[outline.NAME] = outline.outline_text(draft.outline)
    if draft.blocks:
        found["blocks"] = [
            {"label": b.label, "outlines": b.outlines, "paths": b.paths, "conclusion": b.conclusion}
            for b in draft.blocks
        ]
    return found


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
