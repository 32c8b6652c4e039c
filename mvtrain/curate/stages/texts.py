"""Texts of outlines, and what every text that a model writes must not have."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mvtrain.curate.records import Complaint, Draft, Part, Step
from mvtrain.curate.stages.outline import leaves_of
from mvtrain.grammar import TAGS

CONTEXT = 4000
"""Characters of the text before a block that are shown; all of the question is."""
PLACE = re.compile(r"\[\[block \d+\]\]")
"""Stands in a path for a block in it."""
LABELLED = re.compile(r"\A\s*(?:path\s+)?\d+(?:\.\d+)*\s*[:.)]\s+", re.IGNORECASE)
"""A label that the model wrote in front of an outline or a path; ours are written when the trace is."""
_BOX = re.compile(r"\\boxed\s*\{[^{}]*\}")
_MARKUP = re.compile(
    "|".join(map(re.escape, TAGS))
    + r"|</?think>|<\|[^|<>\n]{1,40}\|>|\[\[block \d+\]\]|[\x00-\x08\x0b-\x1f\x7f]|[\ud800-\udfff]",
    re.IGNORECASE,
)
"""Tags, tokens of chat templates, places of blocks, control characters, halves of surrogate pairs."""


def boxes_in(text: str) -> list[str]:
    """Boxes without braces in them, as they stand."""
    return _BOX.findall(text)


def shown(boxes: Sequence[str]) -> str:
    return ", ".join(boxes) or "no box"


def text_of(parts: Sequence[Part], draft: Draft) -> str:
    """As it stands in the chain."""
    return "\n".join(draft.texts[step.id] for step in leaves_of(parts))


def with_places(parts: Sequence[Part], draft: Draft) -> str:
    lines, num_blocks = [], 0
    for part in parts:
        if isinstance(part, Step):
            lines.append(draft.texts[part.id])
        else:
            num_blocks += 1
            lines.append(f"[[block {num_blocks}]]")
    return "\n".join(lines)


def context_of(before: str) -> str:
    return before[-CONTEXT:] or "(nothing)"


def markup_in(text: str) -> str:
    """The first piece of a text that would not be text in a trace; empty where there is none."""
    found = _MARKUP.search(text)
    return "" if found is None else found.group() if found.group().isprintable() else ascii(found.group())


def tag_complaints(text: str) -> list[Complaint]:
    """Of an answer; places of blocks are looked at elsewhere."""
    tags = [tag for tag in dict.fromkeys(_MARKUP.findall(text)) if not PLACE.fullmatch(tag)]
    tags = [tag if tag.isprintable() else ascii(tag) for tag in tags]
    return [Complaint("tags", f"the answer has tags in it: {', '.join(tags)}; write none")] if tags else []
