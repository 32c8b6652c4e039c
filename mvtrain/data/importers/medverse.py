"""MedVerse (arXiv 2602.07529): a `<Plan>` of steps that depend on each other, their `<Execution>`, a `<Conclusion>`.

The steps are a graph. Its levels become consecutive parts of the trace: several steps of one level are a block, a
single one is text. A step sees all earlier levels, which is at least what it depends on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvtrain.data.importers.blocks import EMPTY_PATH, NO_OUTLINE, NO_PATH, SAME_LABEL, Branch, make_block
from mvtrain.data.importers.columns import MISSING, KnownColumns, answer_text, lookup
from mvtrain.data.importers.convert import Format
from mvtrain.data.importers.markup import STRAY_TEXT, Children, Element, Rejected, only_elements, only_text

PLAN, EXECUTION, CONCLUSION = "Transient Plan Prompt", "Transient Execution Prompt", "Conclusion"
REASON_PATH, ANSWER = "Original Reason Path", "Goal"

BAD_PLAN = "an outline of the plan that cannot be read"
BAD_STEP = "a step without its number"
NO_SUCH_STEP = "a step that depends on one that is not there"
CYCLE = "steps that wait for each other"
PARTS = "plan and execution are missing or out of order"

_NUMBER = r"\s*(?:(?:Transient\s+)?Step\s+)?(\d+)\s*[:.]"
_OUTLINE = re.compile(rf"{_NUMBER}(.*);\s*Dependency\s*:\s*\[([^\]]*)\]\s*", re.DOTALL | re.IGNORECASE)
_STEP = re.compile(_NUMBER, re.IGNORECASE)


@dataclass(frozen=True)
class Step:
    title: str
    needs: tuple[int, ...]


def convert(children: Children, parent: str | None) -> list:
    """The text before the plan, the levels, the conclusion. Raises Rejected."""
    elements = [child for child in children if isinstance(child, Element)]
    names = [element.name for element in elements]
    if not names:
        return list(children)
    if names not in (["plan", "execution"], ["plan", "execution", "conclusion"]):
        raise Rejected(PARTS, f"found {', '.join(names)}")
    start, end = children.index(elements[0]), children.index(elements[-1])
    stray = [child for child in children[start:end] if isinstance(child, str)]
    if stray:
        raise Rejected(STRAY_TEXT, f"between plan, execution and conclusion: {stray[0].strip()[:40]!r}")
    plan, texts = _read_plan(elements[0]), _read_execution(elements[1])
    _check_same(plan, texts)
    parts = _levels_as_parts(plan, texts, elements[1].where)
    conclusion = only_text(elements[2]) if len(elements) > 2 else ""
    return [*children[:start], *_with_conclusion(parts, conclusion), *children[end + 1 :]]


def levels(plan: Mapping[int, tuple[int, ...]]) -> list[list[int]]:
    """Steps by level: those that need nothing, then those that need only steps of earlier levels, and so on.

    Args:
        plan: step -> the steps it needs.

    Raises:
        Rejected: a step that is needed is not there, or steps wait for each other.
    """
    for step, needs in plan.items():
        if not set(needs) <= plan.keys():
            raise Rejected(NO_SUCH_STEP, f"step {step} needs {sorted(set(needs) - plan.keys())}")
    order = {step: index for index, step in enumerate(plan)}
    needed_by: dict[int, list[int]] = {step: [] for step in plan}
    for step, needs in plan.items():
        for need in set(needs):
            needed_by[need].append(step)
    open_needs = {step: len(set(needs)) for step, needs in plan.items()}
    found = []
    level = [step for step, count in open_needs.items() if not count]
    while level:
        found.append(level)
        later = []
        for step in (later_step for done in level for later_step in needed_by[done]):
            open_needs[step] -= 1
            if not open_needs[step]:
                later.append(step)
        level = sorted(later, key=order.__getitem__)
    waiting = [step for step, count in open_needs.items() if count]
    if waiting:
        raise Rejected(CYCLE, f"steps {waiting[:10]}")
    return found


def _levels_as_parts(plan: dict[int, Step], texts: dict[int, str], where: str) -> list:
    parts: list = []
    for level in levels({number: step.needs for number, step in plan.items()}):
        bodies = {number: _body(texts[number], plan[number].title) for number in level}
        for number, body in bodies.items():
            if not body:
                raise Rejected(EMPTY_PATH, f"step {number}")
        if len(level) == 1:
            parts.append(f"{plan[level[0]].title}\n{bodies[level[0]]}")
            continue
        plans = [(str(number), plan[number].title) for number in level]
        branches = [Branch(str(number), [bodies[number]]) for number in level]
        parts.append(make_block(plans, branches, "", None, lambda children, label: list(children), where))
    return parts


def _with_conclusion(parts: list, conclusion: str) -> list:
    """The conclusion closes the last block if that ends the reasoning, and is text otherwise."""
    if not conclusion:
        return parts
    if isinstance(parts[-1], str):
        return [*parts, conclusion]
    block = parts[-1]
    return [*parts[:-1], type(block)(block.outlines, block.paths, conclusion)]


def _read_plan(plan: Element) -> dict[int, Step]:
    steps: dict[int, Step] = {}
    for outline in only_elements(plan, "outline"):
        match = _OUTLINE.fullmatch(only_text(outline))
        needs = [need.strip() for need in match.group(3).split(",") if need.strip()] if match else []
        if not match or not match.group(2).strip() or not all(need.isdecimal() for need in needs):
            raise Rejected(BAD_PLAN, f"{outline.where}: {only_text(outline)[:80]!r}")
        number = int(match.group(1))
        if number in steps:
            raise Rejected(SAME_LABEL, f"step {number} in the plan")
        steps[number] = Step(match.group(2).strip(), tuple(map(int, needs)))
    if not steps:
        raise Rejected(BAD_PLAN, f"{plan.where}: it has no outline")
    return steps


def _read_execution(execution: Element) -> dict[int, str]:
    texts: dict[int, str] = {}
    for step in only_elements(execution, "step"):
        text = only_text(step)
        match = _STEP.match(text)
        if not match:
            raise Rejected(BAD_STEP, f"{step.where}: {text[:60]!r}")
        number = int(match.group(1))
        if number in texts:
            raise Rejected(SAME_LABEL, f"step {number} in the execution")
        texts[number] = text[match.end() :].strip()
    return texts


def _check_same(plan: Mapping[int, Any], texts: Mapping[int, Any]) -> None:
    for reason, missing in ((NO_OUTLINE, texts.keys() - plan.keys()), (NO_PATH, plan.keys() - texts.keys())):
        if missing:
            raise Rejected(reason, f"steps {sorted(missing)}")


def _body(text: str, title: str) -> str:
    """A step's text without its heading: a first line that is the title again, or of the form `A -> B`."""
    first, _, rest = text.partition("\n")
    heading = " ".join(first.split()) == " ".join(title.split()) or "->" in first
    return (rest if heading else text).strip()


def _compose(fields: Mapping[str, Any], response: str) -> str | None:
    """The columns of the public set as one response; None where the row has ready text."""
    if response != EXECUTION:
        return None
    values = {name: answer_text(fields, name) for name in (REASON_PATH, PLAN, EXECUTION, CONCLUSION, ANSWER)}
    for name in (PLAN, EXECUTION):
        if values[name] is None:
            raise Rejected(MISSING, repr(name))
    conclusion = values[CONCLUSION] and f"<Conclusion>\n{values[CONCLUSION]}\n</Conclusion>"
    inside = [values[REASON_PATH], values[PLAN], values[EXECUTION], conclusion]
    return "\n".join(["<Think>", *filter(None, inside), "</Think>", *filter(None, [values[ANSWER]])])


def _compose_question(fields: Mapping[str, Any], question: str) -> str:
    options = lookup(fields, "Options")
    if isinstance(options, Mapping):
        options = "\n".join(f"{letter}. {option}" for letter, option in options.items() if option is not None)
    return f"{question}\n{options.strip()}" if isinstance(options, str) and options.strip() else question


def _clean_question(question: str) -> str:
    return question.removeprefix("Question:").strip()


FORMAT = Format(
    name="medverse",
    tags=("plan", "outline", "execution", "step", "conclusion"),
    columns=KnownColumns(
        question=("Question", "question", "messages", "text"),
        response=(EXECUTION, "response", "messages", "text"),
        answer=(ANSWER, "answer"),
    ),
    convert=convert,
    final_answer=re.compile(r"^[ \t]*Answer[ \t]*:", re.MULTILINE | re.IGNORECASE),
    compose=_compose,
    clean_question=_clean_question,
    compose_question=_compose_question,
)
