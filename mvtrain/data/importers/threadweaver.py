"""ThreadWeaver (arXiv 2512.07843): `<Parallel>` with `<Outlines>`, `<Thread>`s and perhaps a `<Conclusion>`."""

from __future__ import annotations

from mvtrain.data.importers.blocks import Branch, make_block
from mvtrain.data.importers.columns import KnownColumns
from mvtrain.data.importers.convert import Format
from mvtrain.data.importers.markup import (
    OUT_OF_PLACE,
    Children,
    Element,
    Rejected,
    only_elements,
    only_text,
    split_label,
    split_label_of,
)
from mvtrain.grammar import Block

PLACEHOLDER = "a thread that was left a placeholder"
PARTS = "a block's parts are missing or out of order"

_INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


def convert(children: Children, parent: str | None) -> list:
    """Texts and elements -> texts and blocks. Raises Rejected."""
    parts = []
    for child in children:
        if isinstance(child, Element) and child.name != "parallel":
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> outside of a block")
        parts.append(child if isinstance(child, str) else _block(child, parent))
    return parts


def _block(block: Element, parent: str | None) -> Block:
    elements = only_elements(block, "outlines", "thread", "conclusion")
    names = [element.name for element in elements]
    num_threads = names.count("thread")
    if not num_threads or names not in (
        ["outlines", *["thread"] * num_threads],
        ["outlines", *["thread"] * num_threads, "conclusion"],
    ):
        raise Rejected(PARTS, f"the block of {block.where} has {', '.join(names) or 'nothing'}")
    threads = elements[1 : num_threads + 1]
    for thread in threads:
        if split_label_of(thread)[1] == ["[placeholder]"]:
            raise Rejected(PLACEHOLDER, thread.where)
    return make_block(
        [split_label(only_text(outline)) for outline in only_elements(elements[0], "outline")],
        [Branch(*split_label_of(thread)) for thread in threads],
        only_text(elements[-1]) if names[-1] == "conclusion" else "",
        parent,
        convert,
        block.where,
    )


def _clean_question(question: str) -> str:
    return question.removesuffix(_INSTRUCTION).rstrip()


FORMAT = Format(
    name="threadweaver",
    tags=("parallel", "outlines", "outline", "thread", "conclusion"),
    columns=KnownColumns(
        question=("question", "problem", "messages", "raw_messages", "prompt", "qwen_text", "text"),
        response=("response_reasoning", "thinking", "messages", "raw_messages", "response", "qwen_text", "text"),
        answer=("answer", "ground_truth", "reward_model.ground_truth"),
        beside=(("response_reasoning", "response_content"), ("thinking", "output")),
    ),
    convert=convert,
    clean_question=_clean_question,
)
