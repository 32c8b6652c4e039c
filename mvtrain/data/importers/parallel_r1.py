"""Parallel-R1 (arXiv 2509.07980): `<Parallel>` with `<Path>`s, and a `<Summary>` after it. It has no outlines."""

from __future__ import annotations

import re

from mvtrain.data.importers.blocks import EMPTY_PATH, Branch, first_sentence, make_block
from mvtrain.data.importers.columns import KnownColumns
from mvtrain.data.importers.convert import Format
from mvtrain.data.importers.markup import OUT_OF_PLACE, Children, Element, Rejected, only_elements, only_text
from mvtrain.grammar import Block

NO_PATHS = "a block without a path"
NO_FIRST_SENTENCE = "a path that begins with a block, so that no outline can be made"


def convert(children: Children, parent: str | None) -> list:
    """Texts and elements -> texts and blocks. Raises Rejected."""
    parts, summed_up = [], -1
    for i, child in enumerate(children):
        following = children[i + 1] if i + 1 < len(children) else None
        if isinstance(child, str):
            parts.append(child)
        elif child.name == "parallel":
            summary = following if isinstance(following, Element) and following.name == "summary" else None
            summed_up = i + 1 if summary else summed_up
            parts.append(_block(child, only_text(summary) if summary else "", parent))
        elif child.name != "summary" or i != summed_up:
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> that follows no block")
    return parts


def _block(block: Element, conclusion: str, parent: str | None) -> Block:
    paths = only_elements(block, "path")
    if not paths:
        raise Rejected(NO_PATHS, f"the block of {block.where}")
    return make_block(
        [(None, _outline(path)) for path in paths],
        [Branch(None, path.children) for path in paths],
        conclusion,
        parent,
        convert,
        block.where,
    )


def _outline(path: Element) -> str:
    if not path.children:
        raise Rejected(EMPTY_PATH, path.where)
    if not isinstance(path.children[0], str):
        raise Rejected(NO_FIRST_SENTENCE, path.where)
    return first_sentence(path.children[0])


FORMAT = Format(
    name="parallel-r1",
    tags=("parallel", "path", "summary"),
    columns=KnownColumns(
        question=("question", "extra_info.question", "problem", "prompt", "messages", "text"),
        response=("response", "extra_info.answer", "output", "completion", "messages", "answer", "text"),
        answer=("ground_truth", "reward_model.ground_truth", "final_answer", "answer"),
    ),
    convert=convert,
    outlines="first sentence of the path",
    final_answer=re.compile(r"^[ \t*]*Final Answer[ \t*]*:", re.MULTILINE | re.IGNORECASE),
)
