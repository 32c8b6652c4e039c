"""NPR (arXiv 2512.07461): a `<guideline>` with `<plan>`s, one `<step>` for each, and a `<takeaway>`."""

from __future__ import annotations

from mvtrain.data.importers.blocks import Branch, make_block
from mvtrain.data.importers.columns import KnownColumns
from mvtrain.data.importers.convert import Format
from mvtrain.data.importers.markup import (
    OUT_OF_PLACE,
    STRAY_TEXT,
    Children,
    Element,
    Rejected,
    only_elements,
    only_text,
    split_label,
    split_label_of,
)
from mvtrain.grammar import Block

_INSTRUCTION = "You must write your answer strictly following the XML-like format"


def convert(children: Children, parent: str | None) -> list:
    """Texts and elements -> texts and blocks. Raises Rejected."""
    parts, i = [], 0
    while i < len(children):
        child = children[i]
        if isinstance(child, str):
            parts.append(child)
            i += 1
            continue
        if child.name != "guideline":
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> that follows no <guideline>")
        end = _end_of_block(children, i + 1)
        parts.append(_block(child, children[i + 1 : end], parent))
        i = end
    return parts


def _end_of_block(children: Children, start: int) -> int:
    """Where the steps and the takeaway end. Raises Rejected for text in between."""
    end, last = start, start
    while end < len(children):
        child = children[end]
        end += 1
        if isinstance(child, Element):
            if child.name not in ("step", "takeaway"):
                break
            if end - 1 > last:
                raise Rejected(STRAY_TEXT, f"{children[last].strip()[:40]!r} before <{child.name}> of {child.where}")
            last = end
            if child.name == "takeaway":
                break
    return last


def _block(guideline: Element, following: Children, parent: str | None) -> Block:
    steps = [element for element in following if element.name == "step"]
    takeaways = [element for element in following if element.name == "takeaway"]
    return make_block(
        [split_label(only_text(plan)) for plan in only_elements(guideline, "plan")],
        [Branch(*split_label_of(step)) for step in steps],
        only_text(takeaways[0]) if takeaways else "",
        parent,
        convert,
        guideline.where,
    )


def _clean_question(question: str) -> str:
    return question.partition(_INSTRUCTION)[0].strip()


FORMAT = Format(
    name="npr",
    tags=("guideline", "plan", "step", "takeaway"),
    columns=KnownColumns(
        question=("question", "extra_info.question", "problem", "input", "prompt", "messages", "text"),
        response=("response", "output", "completion", "trajectory", "solution", "messages", "text"),
        answer=("answer", "ground_truth", "extra_info.answer", "reward_model.ground_truth"),
    ),
    convert=convert,
    clean_question=_clean_question,
)
