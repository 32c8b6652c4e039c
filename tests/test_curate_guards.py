"""The last checks of a trace, which nothing should reach that the stages let through: each on a draft that is bad."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from mvtrain.curate.admission import Admission
from mvtrain.curate.curator import CurateSettings, Curator
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.records import Branching, Complaint, Done, Draft, Framed, Rejected, Source, Step
from mvtrain.curate.run import curate_all
from mvtrain.curate.stages import trace
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
