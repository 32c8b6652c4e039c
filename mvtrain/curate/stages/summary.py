"""Stage 1: the summary tree. The model cuts the numbered units of a chain into steps, and steps into substeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pydantic import BaseModel, Field

from mvtrain.curate.asking import Dialogue
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import read_json
from mvtrain.curate.records import Complaint, Complaints, Draft, Step
from mvtrain.curate.units import numbered

NAME = "summary"


class SubstepForm(BaseModel):
    title: str = Field(min_length=1)
    units: tuple[int, int] | None = None


class StepForm(SubstepForm):
    substeps: list[SubstepForm] | None = None


class SummaryForm(BaseModel):
    steps: list[StepForm] = Field(min_length=1)


async def summarise(draft: Draft, dialogue: Dialogue, prompts: Prompts) -> Draft:
    """Fills in `steps` and begins `dialogue`. Every unit belongs to exactly one step."""
    text = prompts.fill(NAME, question=draft.source.question, units=numbered(draft.units))
    messages = ({"role": "user", "content": text},)

    def read(answer: str) -> tuple[str, tuple[Step, ...]]:
        return answer, read_steps(answer, len(draft.units))

    answer, steps = await dialogue.ask(NAME, NAME, messages, read)
    return replace(draft, dialogue=(*messages, {"role": "assistant", "content": answer}), steps=steps)


def read_steps(answer: str, num_units: int) -> tuple[Step, ...]:
    """Raises Complaints where units are left out, taken twice or out of order."""
    form = read_json(answer, SummaryForm)
    steps = tuple(_step(f"S{number}", step) for number, step in enumerate(form.steps, 1))
    leaves = [leaf for step in steps for leaf in step.substeps or (step,)]
    complaints = list(_faults_of_cover("the chain", leaves, 1, num_units))
    for step in steps:
        if step.substeps and step.first is not None:
            complaints += _faults_of_cover(step.id, step.substeps, step.first, step.last)
    if complaints:
        raise Complaints(complaints)
    return steps


def _step(id: str, form: SubstepForm) -> Step:
    first, last = form.units or (None, None)
    forms = (form.substeps if isinstance(form, StepForm) else None) or []
    substeps = tuple(_step(f"{id}.{number}", substep) for number, substep in enumerate(forms, 1))
    if len(substeps) == 1:
        substeps = ()  # a step in one piece
    return Step(id, form.title.strip(), first, last, substeps)


def _faults_of_cover(whole: str, steps: Sequence[Step], first: int, last: int) -> Iterator[Complaint]:
    """What keeps steps from covering units `first` to `last`, each once and in order.

    Around a step without units the model could not point: what its neighbours leave between them is that step's.
    """
    expected, is_open = first, False
    for step in steps:
        if step.first is None:
            is_open = True
            continue
        place = f"{step.id} has units {step.first} to {step.last}"
        if step.first > step.last:
            yield Complaint("wrong units", f"{place}: the first comes after the last")
        elif not first <= step.first <= step.last <= last:
            yield Complaint("wrong units", f"{place}, but {whole} has units {first} to {last}")
        elif step.first < expected or (step.first > expected and not is_open):
            yield Complaint(
                "wrong units", f"{place}, expected it to begin at unit {expected}: every unit once, in order"
            )
        expected, is_open = step.last + 1, False
    if expected <= last and not is_open:
        yield Complaint("wrong units", f"units {expected} to {last} of {whole} belong to no step")
