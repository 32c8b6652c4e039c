"""A row of a foreign format -> a row of ours, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvtrain.data.importers.columns import Columns, KnownColumns, answer_text, turn_text
from mvtrain.data.importers.markup import OUT_OF_PLACE, Children, Element, Rejected, only_text, read_markup
from mvtrain.grammar import TAGS, Block, Think, Trace, check, parse, render, walk
from mvtrain.prompt import refuse_tags, response_text

TAG_IN_QUESTION = "a tag in the question"
TAG_IN_TEXT = "a tag of the trace format in a text"
CHAT_TOKEN = "a token of a chat template in a text"
NOT_UNICODE = "text that is no valid Unicode"
NO_BLOCK = "no parallel block"
NO_ANSWER = "nothing follows the reasoning, and no answer is known"
NO_CONCLUSION = "a block without a conclusion"
NOT_WELL_FORMED = "not a well-formed trace"

_OUR_TAG = re.compile("|".join(TAGS))
_CHAT_TOKEN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|start_header_id|end_header_id)\|>")
_THINK_TAG = re.compile(r"<\s*(/\s*)?think\s*>", re.IGNORECASE)


def _same(text: str) -> str:
    return text


@dataclass(frozen=True)
class Format:
    """What is particular to one format."""

    name: str
    tags: tuple[str, ...]
    """Without `think`, which all of them may have."""
    columns: KnownColumns
    convert: Callable[[Children, str | None], list]
    """Texts and elements of the reasoning or of a path, and the label of that path -> texts and blocks."""
    outlines: str = "given"
    """Where outlines come from; the column `outlines` says it of every row."""
    compose: Callable[[Mapping[str, Any], str], str | None] = lambda fields, response: None
    """A response that is spread over several columns; None reads the one column."""
    clean_question: Callable[[str], str] = _same
    """Takes off what the format adds to a question in a conversation."""
    compose_question: Callable[[Mapping[str, Any], str], str] = lambda fields, question: question
    """Adds what stands in other columns."""
    final_answer: re.Pattern | None = None
    """Where the answer begins in the text after the last block, if there is no `</think>`; None: right after it."""


class RejectedRow(ValueError):
    """A row that cannot be converted, with every reason that was found."""

    def __init__(self, reasons: Sequence[Rejected]) -> None:
        super().__init__("; ".join(map(str, reasons)))
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class Converted:
    fields: dict[str, Any]
    """The row of ours."""
    num_blocks: int
    num_without_conclusion: int
    num_one_path: int


def convert_row(
    fields: Mapping[str, Any], form: Format, columns: Columns, id: str, source: str, require_conclusion: bool = False
) -> Converted:
    """Convert one row. Raises RejectedRow with the reasons of question and response both."""
    reasons: list[Rejected] = []
    question = _or_note(reasons, lambda: read_question(fields, form, columns))
    read = _or_note(reasons, lambda: read_response(fields, form, columns))
    if reasons:
        raise RejectedRow(reasons)
    trace, attempt = read
    blocks = [block for block, _ in walk(trace)]
    num_without = sum(1 for block in blocks if not block.conclusion)
    if require_conclusion and num_without:
        raise RejectedRow([Rejected(NO_CONCLUSION, f"{num_without} of {len(blocks)} blocks")])
    row = {
        "id": id,
        "question": question,
        "deepseek_thinking_trajectory_parallel": render(trace),
        "deepseek_attempt": attempt,
        "answer": answer_text(fields, columns.answer),
        "source": source,
        "outlines": form.outlines,
    }
    return Converted(row, len(blocks), num_without, sum(1 for block in blocks if len(block.paths) == 1))


def read_question(fields: Mapping[str, Any], form: Format, columns: Columns) -> str:
    """The question as ours, without a tag. Raises Rejected."""
    question, in_conversation = turn_text(fields, columns.question, "user")
    if in_conversation:
        question = form.clean_question(question)
    question = form.compose_question(fields, question)
    _refuse_characters(question)
    try:
        refuse_tags(question)
    except ValueError as error:
        raise Rejected(TAG_IN_QUESTION, str(error)) from None
    return question


def read_response(fields: Mapping[str, Any], form: Format, columns: Columns) -> tuple[Trace, str]:
    """The reasoning as a trace, and what follows it. Raises Rejected."""
    text = form.compose(fields, columns.response)
    if text is None:
        text, _ = turn_text(fields, columns.response, "assistant")
    _refuse_characters(text)
    if columns.attempt:
        after, _ = turn_text(fields, columns.attempt, "assistant")
        _refuse_characters(after)
        after = only_text(Element(columns.attempt, "", read_markup(after, ("think", *form.tags))))
        inside = read_markup(_THINK_TAG.sub("", text), form.tags)
    else:
        inside, after = _split_thinking(read_markup(_open_thinking(text), ("think", *form.tags)))
    parts = form.convert(inside, None)
    if not any(isinstance(part, Block) for part in parts):
        raise Rejected(NO_BLOCK)
    if after is None:
        parts, after = _split_after_last_block(parts, form.final_answer)
    attempt = after.strip() or _boxed(answer_text(fields, columns.answer))
    if not attempt:
        raise Rejected(NO_ANSWER)
    trace = Trace((Think(tuple(parts)),))
    _check(trace, attempt)
    return trace, attempt


def _split_thinking(children: Children) -> tuple[Children, str | None]:
    """(What stands in `<think>` and before it, the text after it); (everything, None) without `<think>`."""
    thinks = [i for i, child in enumerate(children) if isinstance(child, Element) and child.name == "think"]
    if not thinks:
        return children, None
    if len(thinks) > 1:
        raise Rejected(OUT_OF_PLACE, f"{children[thinks[1]].where}: a second <think>")
    before, think, after = children[: thinks[0]], children[thinks[0]], children[thinks[0] + 1 :]
    for child in after:
        if isinstance(child, Element):
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> after </think>")
    return [*before, *think.children], "".join(after)


def _open_thinking(text: str) -> str:
    """Chat templates often write `<think>` themselves, so that a response shows its end only."""
    first = _THINK_TAG.search(text)
    return f"<think>{text}" if first and first.group(1) else text


def _split_after_last_block(parts: list, final_answer: re.Pattern | None) -> tuple[list, str]:
    """The text after the last block is what the reader is told, or from the place on where the answer begins."""
    if not isinstance(parts[-1], str):
        return parts, ""
    text = parts[-1]
    if final_answer is None:
        return parts[:-1], text
    starts = [match.start() for match in final_answer.finditer(text)]
    start = starts[-1] if starts else 0
    return [*parts[:-1], text[:start]], text[start:]


def _check(trace: Trace, attempt: str) -> None:
    """Refuse a tree whose texts hold tags: written out, they would be another tree."""
    for text in [*_texts(trace), attempt]:
        found = _OUR_TAG.search(text)
        if found:
            raise Rejected(TAG_IN_TEXT, f"{found.group()} in {text[max(0, found.start() - 20) : found.end() + 20]!r}")
    problems = check(response_text(render(trace), attempt))
    if problems:
        raise Rejected(NOT_WELL_FORMED, str(problems[0]))
    if parse(render(trace)) != trace:
        raise Rejected(NOT_WELL_FORMED, "the trace as it is written reads as another one")


def _texts(trace: Trace) -> list[str]:
    texts = [part for part in trace.parts[0].parts if isinstance(part, str)]
    for block, _ in walk(trace):
        texts += [block.conclusion, *(outline.text for outline in block.outlines)]
        texts += [part for path in block.paths for part in path.parts if isinstance(part, str)]
    return texts


def _refuse_characters(text: str) -> None:
    """Refuse what no tokenizer reads as text: tokens of chat templates, and halves of surrogate pairs."""
    found = _CHAT_TOKEN.search(text)
    if found:
        raise Rejected(CHAT_TOKEN, found.group())
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Rejected(NOT_UNICODE, "half of a surrogate pair")


def _boxed(answer: str | None) -> str | None:
    return answer and (answer if "\\boxed" in answer else f"\\boxed{{{answer}}}")


def _or_note(reasons: list[Rejected], read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Rejected as rejected:
        reasons.append(rejected)
        return None
