"""The last checks of a trace, which nothing should reach that the stages let through: each on a draft that is bad."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mvtrain.curate.admission import Admission
from mvtrain.curate.answers import Answer
from mvtrain.curate.asking import Dialogue, Try
from mvtrain.curate.curator import CurateSettings, Curator
from mvtrain.curate.faults import SpendReached
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.records import Branching, Complaint, Done, Draft, Framed, Rejected, Source, Step
from mvtrain.curate.run import curate_all
from mvtrain.curate.spending import Usage
from mvtrain.curate.stages import groups, map_reduce, outline, refill, rewrite, summary, trace
from mvtrain.grammar import render

STEPS = [Step(f"S{n}", "t", n, n) for n in range(1, 5)]
TEXTS = {"S1": "Two cases.", "S2": "The first gives three.", "S3": "The second gives four.", "S4": r"So \boxed{7}."}
SOURCE = Source("id", "Which?", "\n".join(TEXTS.values()), r"\boxed{7}")
BLOCK = Branching("1", ((STEPS[1],), (STEPS[2],)))
FRAME = Framed(BLOCK, None, "Two cases.", ("first", "second"), "Three and four.", (TEXTS["S2"], TEXTS["S3"]))
DRAFT = Draft(SOURCE, outline=(STEPS[0], BLOCK, STEPS[3]), texts=TEXTS, blocks=(FRAME,))


def test_a_good_draft_is_a_trace():
    done = trace.assemble(DRAFT, 0.2)
    assert done.distance == 0 and render(done.trace).count("<Path>") == 2


@pytest.mark.parametrize(
    ("draft", "kind"),
    [
        (replace(DRAFT, texts={**TEXTS, "S4": "So <Path> it is."}), "grammar"),
        (replace(DRAFT, blocks=(replace(FRAME, conclusion="a </Parallel> b"),)), "grammar"),
        (replace(DRAFT, blocks=(replace(FRAME, paths=("Three.", "Four.")),)), "content"),
        (replace(DRAFT, texts={**TEXTS, "S1": "Something else, and at some length too."}), "content"),
    ],
)
def test_a_bad_draft_is_none(draft, kind):
    with pytest.raises(Rejected) as error:
        trace.assemble(draft, 0.2)
    assert (error.value.stage, error.value.complaints[0].kind) == ("trace", kind)


def final_answer(text: str) -> str | None:
    return text.partition("boxed{")[2].partition("}")[0] or None


async def same(a: str, b: str) -> bool:
    return a == b


@pytest.mark.parametrize(("last", "shown"), [("So seven it is.", "nothing"), (r"So \boxed{8}.", "'8'")])
def test_a_final_answer_that_is_lost_or_another(last, shown):
    curator = Curator(None, Prompts.read(), CurateSettings(), same, final_answer)
    draft = trace.assemble(replace(DRAFT, texts={**TEXTS, "S4": last}), 0.5)
    with pytest.raises(Rejected, match="the chain ends in '7', the trace in") as error:
        asyncio.run(curator._check_answer(draft))
    assert error.value.complaints[0].kind == "answer lost" and shown in str(error.value)
    asyncio.run(curator._check_answer(trace.assemble(DRAFT, 0.2)))


class Journal:
    """Of a run in memory."""

    def __init__(self) -> None:
        self.done: list[Done] = []

    def has(self, number: int, digest: str) -> bool:
        return False

    def forget_other(self, number: int, digest: str) -> None:
        pass

    def add(self, done: Done) -> None:
        self.done.append(done)


def test_other_faults_end_a_run_after_all_work_has_stopped():
    class Broken:
        async def curate(self, number: int, source: Source) -> Done:
            if number == 2:
                raise OSError("no space left")
            return Done(number, source, "rejected", "source", (Complaint("k", "t"),))

    journal = Journal()
    sources = [replace(SOURCE, id=str(number)) for number in range(5)]
    with pytest.raises(OSError, match="no space left"):
        asyncio.run(curate_all(sources, Broken(), journal, Admission(None, None, None), 1, lambda done: None))
    assert [done.number for done in journal.done] == [0, 1]


def test_nothing_is_begun_once_the_ceiling_is_reached():
    class Spent:
        async def curate(self, number: int, source: Source) -> Done:
            await asyncio.sleep(0.01 * number)
            if number == 0:
                raise SpendReached("the ceiling is reached")
            return Done(number, source, "rejected", "source", (Complaint("k", "t"),))

    journal = Journal()
    sources = [replace(SOURCE, id=str(number)) for number in range(6)]
    admission = Admission(None, None, None)
    ended = asyncio.run(curate_all(sources, Spent(), journal, admission, 2, lambda done: None))
    assert ended.reason == "the ceiling is reached" and [done.number for done in journal.done] == [1]


def test_the_last_check_of_the_answer_is_made(monkeypatch):
    """In a record whose stages have all gone well but for the answer."""

    async def done(draft: Draft, *rest) -> Draft:
        return draft

    lost = replace(DRAFT, texts={**TEXTS, "S4": "So seven it is."})
    curator = Curator(None, Prompts.read(), CurateSettings(limit=0.5), same, final_answer)
    for module, name in ((groups, "find_groups"), (refill, "refill"), (map_reduce, "frame_blocks"),
                         (rewrite, "rewrite_paths")):  # fmt: skip
        monkeypatch.setattr(module, name, done)
    monkeypatch.setattr(outline, "draw_outline", lambda draft: draft)
    for draft, kind in ((replace(lost, groups=(BLOCK,)), "answer lost"), (replace(DRAFT, groups=(BLOCK,)), None)):
        work = curator._from_groups(draft, None)
        if kind is None:
            assert asyncio.run(work).trace is not None
            continue
        with pytest.raises(Rejected) as error:
            asyncio.run(work)
        assert error.value.complaints[0].kind == kind


def test_a_typed_step_that_drops_the_box_is_asked_for_again():
    class Typist:
        def __init__(self) -> None:
            self.answers = ["So it is 7, that much is certain.", r"So it is \boxed{7}, that much is certain."]
            self.told = []

        async def ask(self, messages, *, stage: str, max_tokens: int, attempt: int = 0):
            self.told.append(messages[-1]["content"])
            return Answer(self.answers[attempt], "stop", Usage(1, 1), False)

    units = ("Two cases are all there are, and both are short.\n", r"So it is \boxed{7}, that much is certain.")
    steps = (Step("S1", "t", 1, 1), Step("S2", "t", None, None))
    draft = Draft(Source("id", "Which?", "".join(units), r"\boxed{7}"), units=units, outline=steps)
    typist = Typist()
    done = asyncio.run(refill.refill(draft, Dialogue(typist, 3, 100), Prompts.read(), 0.2))
    assert done.texts["S2"] == typist.answers[1]
    assert r"the steps together have no box, the chain has \boxed{7}" in typist.told[-1]
    typist.answers = [typist.answers[0]] * 3
    with pytest.raises(Rejected) as error:
        asyncio.run(refill.refill(draft, Dialogue(typist, 3, 100), Prompts.read(), 0.2))
    assert [complaint.kind for complaint in error.value.complaints] == ["answer lost"]


def test_questions_about_groups_that_are_given_up_are_forgotten(monkeypatch):
    """Or bad answers about paths that are no more would use up the tries of those that take their names."""

    async def summarise(draft: Draft, *rest) -> Draft:
        return draft

    async def from_groups(draft: Draft, dialogue: Dialogue) -> Draft:
        rounds.append(sorted(dialogue.asked))
        if len(rounds) == 2:
            return draft
        dialogue.asked |= {"groups": [Try("{}")], "rewrite 1 path 1": [Try("bad", (Complaint("k", "t"),))]}
        raise Rejected("groups", [Complaint("dependent", "S2 is not independent")])

    rounds = []
    curator = Curator(None, Prompts.read(), CurateSettings(), same, final_answer)
    monkeypatch.setattr(summary, "summarise", summarise)
    monkeypatch.setattr(curator, "_from_groups", from_groups)
    assert asyncio.run(curator._make(DRAFT, Dialogue(None, 3, 100))) == DRAFT
    assert rounds == [[], ["groups"]]
