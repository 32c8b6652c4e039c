"""Where a response's answer stands. Standard library only; every function is linear in the length of the text."""

from __future__ import annotations

import re

from mvtrain.evaluate.grading_text import normalise, undress
from mvtrain.evaluate.records import Kind

__all__ = ["after_reasoning", "final_answer", "last_box", "normalise"]

LONGEST_LINE = 120
"""Characters of an answer line; what is longer tells how to get there, and may be cut off on the way."""
MOST_WORDS = 8
"""Words behind "answer is" in a sentence about the answer: more of them do not give it."""

_BRACES = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{")
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{\s{0,99}\}")
_UNBRACED_BOX = re.compile(r"\\(?:boxed|fbox)[ ]{1,3}([+-]?\w{1,30}(?:\.\d{1,30})?)(?=[\s$,;.)\\])")
_BLOCK = re.compile(r"<(/?)Parallel>")
_THINK_END = re.compile(r"</[Tt]hink>")
_OPEN = re.compile(r"<[Tt]hink>|<Parallel>")
_ANSWER_LINE = re.compile(
    r"\banswer\b[ *_]{0,9}(?P<verb>is\b[ ]{0,9}:?|:)[ *_]{0,9}\s{0,9}(?P<text>\S[^\n]{0,999})", re.IGNORECASE
)
_ANSWER_HEADING = re.compile(r"^\W{0,9}(?:final )?answer\W{0,9}\n\s{0,9}(?P<text>\S[^\n]{0,999})", re.I | re.M)
_MARKED_LINE = re.compile(r"^####[ ]{0,9}(?P<text>\S[^\n]{0,999})", re.MULTILINE)
_CHOICE_LINE = re.compile(
    r"\b(?:answer|option|choice)\b[ *_]{0,9}(?:is\b[ ]{0,9}:?|:)[ *_]{0,9}\s{0,9}(?P<text>\S[^\n]{0,999})", re.I
)
_LONE_LETTER = re.compile(r"\W{0,4}[A-J]\W{0,4}")
_NEXT_SENTENCE = re.compile(r"[.!]\s+(?=[A-Z])")


def final_answer(response: str, kind: Kind = "math") -> str | None:
    """What follows the reasoning says: the last complete box, else the text of the last answer line.

    None where there is neither, where the reasoning never ends, or where the last box is cut off. Of a choice question
    a last line that is nothing but a letter counts as well.
    """
    conclusion = after_reasoning(response)
    if conclusion is None:
        return None
    complete, is_cut = _boxes(conclusion)
    if complete or is_cut:
        return None if is_cut else complete[-1]
    unbraced = _UNBRACED_BOX.findall(conclusion)
    return unbraced[-1] if unbraced else _answer_line(conclusion, kind)


def after_reasoning(response: str) -> str | None:
    """The text behind the last `</Think>` that is in no block, else behind the last block, else all of it.

    Blocks that follow `</Think>` are left out. A block that was never closed ends with the `</Think>` behind it: the
    model went on to its answer. None where a `<Think>` or a block is open at the end: cut-off text has no answer,
    however it may read.
    """
    text = _without_blocks(response)
    ends = list(_THINK_END.finditer(text))
    if ends:
        text = text[ends[-1].end() :].replace("</Parallel>", " ")
        return None if _OPEN.search(text) else text
    return None if _OPEN.search(text) else text.rpartition("</Parallel>")[2]


def last_box(text: str) -> str | None:
    """The content of the last complete box of any text, for references."""
    complete, _ = _boxes(text)
    return complete[-1] if complete else None


def _without_blocks(text: str) -> str:
    """Every closed block replaced by the `</Parallel>` that ends it."""
    opened: list[int] = []
    spans: list[tuple[int, int]] = []
    for tag in _BLOCK.finditer(text):
        if not tag[1]:
            opened.append(tag.start())
        elif opened:
            start = opened.pop()
            while spans and spans[-1][0] > start:  # blocks within this one
                spans.pop()
            spans.append((start, tag.start()))
    pieces, position = [], 0
    for start, end in spans:
        pieces.append(text[position:start])
        position = end
    return "".join([*pieces, text[position:]])


def _boxes(text: str) -> tuple[list[str], bool]:
    """(the contents of complete boxes that are not empty, whether the last one that opens never closes).

    A box within a box counts with the outer one.
    """
    last: int | None = None
    opened: list[int | None] = []  # where the content of a box starts; None for other braces
    contents: list[str] = []
    for token in _BRACES.finditer(text):
        piece = token[0]
        if piece[-1] == "{" and piece != r"\{":
            opened.append(token.end() if len(piece) > 1 else None)
            last = opened[-1] or last
        elif piece == "}" and opened:
            start = opened.pop()
            if start is not None and (content := text[start : token.start()].strip()):
                contents.append(_BOX.sub("{", content))
    return contents, last is not None and last in opened


def _answer_line(text: str, kind: Kind) -> str | None:
    patterns = [_ANSWER_LINE, _ANSWER_HEADING, _MARKED_LINE, *([_CHOICE_LINE] if kind == "choice" else [])]
    found = sorted((match for p in patterns for match in p.finditer(text)), key=lambda match: match.start("text"))
    lines = [line for match in found if (line := _line_of(match)) is not None]
    if lines:
        return lines[-1] if len(lines[-1]) <= LONGEST_LINE else None
    last = text.strip().rpartition("\n")[2]
    return undress(last) if kind == "choice" and _LONE_LETTER.fullmatch(last) else None


def _line_of(match: re.Match) -> str | None:
    """The answer that a line gives, up to the end of its sentence; None for a sentence about the answer."""
    line = undress(_NEXT_SENTENCE.split(match["text"], maxsplit=1)[0])
    is_sentence = (match.groupdict().get("verb") or "").strip().casefold() == "is" and len(line.split()) > MOST_WORDS
    return None if is_sentence or not _EMPTY_BOX.sub("", line).strip(" *_$.#") else line
