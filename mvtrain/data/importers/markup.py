"""Text with the tags of a foreign format -> a tree of elements; what stands in it decides the format's own module."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

DEEPEST = 100
"""Tags that may be open at once. Converting recurses, and real data nests two or three deep."""

LEFT_OPEN = "a tag is left open"
CLOSES_NOTHING = "a closing tag closes nothing"
OUT_OF_PLACE = "a tag stands out of place"
STRAY_TEXT = "text between the tags of a block"
TOO_DEEP = "tags nest too deep"

_LABEL = re.compile(r"\s*([0-9]+(?:\.[0-9]+)*)\s*:")


class Rejected(ValueError):
    """A row that has no counterpart in our format.

    `reason` is the same for all rows with the same fault, `detail` says where and what.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass
class Element:
    """A pair of tags and what stands between them."""

    name: str
    """In lower case; empty for the text as a whole."""
    where: str
    """Of the opening tag, for instance `line 3, column 1`."""
    children: list[Element | str] = field(default_factory=list)


Children = Sequence[Element | str]


def read_markup(text: str, names: Sequence[str]) -> list[Element | str]:
    """The texts and elements of a text, in order; blank texts are left out.

    A tag is one of `names`, in capitals or not, white space inside of the brackets allowed; anything else is text.

    Raises:
        Rejected: a tag that is left open or closes nothing, or more than `DEEPEST` tags open at once.
    """
    tag = re.compile(rf"<\s*(/\s*)?({'|'.join(names)})\s*>", re.IGNORECASE)
    lines = [0, *(newline.end() for newline in re.finditer("\n", text))]
    stack, position = [Element("", "")], 0
    for match in tag.finditer(text):
        _add_text(stack[-1], text[position : match.start()])
        position, name, where = match.end(), match.group(2).lower(), _place(lines, match.start())
        if match.group(1):
            _close(stack, name, where)
            continue
        if len(stack) > DEEPEST:
            raise Rejected(TOO_DEEP, f"{where}: more than {DEEPEST} tags are open")
        stack.append(Element(name, where))
        stack[-2].children.append(stack[-1])
    _add_text(stack[-1], text[position:])
    if len(stack) > 1:
        raise Rejected(LEFT_OPEN, f"{stack[-1].where}: <{stack[-1].name}> is never closed")
    return stack[0].children


def only_text(element: Element) -> str:
    """The text of an element that may hold nothing else. Raises Rejected for a tag in it."""
    for child in element.children:
        if isinstance(child, Element):
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> in <{element.name}>, expected text")
    return "".join(element.children).strip()


def only_elements(element: Element, *names: str) -> list[Element]:
    """The children of an element that may hold no text and no other elements. Raises Rejected for either."""
    for child in element.children:
        if isinstance(child, str):
            raise Rejected(STRAY_TEXT, f"<{element.name}> of {element.where} holds {child.strip()[:40]!r}")
        if child.name not in names:
            wanted = " or ".join(f"<{name}>" for name in names)
            raise Rejected(OUT_OF_PLACE, f"{child.where}: <{child.name}> in <{element.name}>, expected {wanted}")
    return list(element.children)


def split_label(text: str) -> tuple[str | None, str]:
    """`2: Odd roots` -> (`2`, `Odd roots`); (None, text) where there is no label."""
    match = _LABEL.match(text)
    return (match.group(1), text[match.end() :].strip()) if match else (None, text.strip())


def split_label_of(element: Element) -> tuple[str | None, list[Element | str]]:
    """The label that an element begins with, or None, and its children without it."""
    if not element.children or not isinstance(element.children[0], str):
        return None, list(element.children)
    label, text = split_label(element.children[0])
    return label, [*([text] if text else []), *element.children[1:]]


def _place(line_starts: Sequence[int], position: int) -> str:
    line = bisect_right(line_starts, position)
    return f"line {line}, column {position - line_starts[line - 1] + 1}"


def _add_text(element: Element, text: str) -> None:
    if text and not text.isspace():
        element.children.append(text)


def _close(stack: list[Element], name: str, where: str) -> None:
    top = stack[-1]
    if top.name == name:
        stack.pop()
    elif any(element.name == name for element in stack):
        raise Rejected(LEFT_OPEN, f"{where}: </{name}> closes, but <{top.name}> of {top.where} is still open")
    else:
        raise Rejected(CLOSES_NOTHING, f"{where}: </{name}>")
