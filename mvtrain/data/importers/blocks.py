"""Plans and paths of a foreign block -> a block of ours: paths in the order of the outlines, labels counted anew."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mvtrain.data.importers.markup import Children, Rejected
from mvtrain.grammar import Block, Outline, Path, child_label

NO_OUTLINE = "a path that no outline names"
NO_PATH = "an outline without a path"
NO_LABEL = "a label is missing"
SAME_LABEL = "a label stands twice"
EMPTY_PATH = "a path without text"
EMPTY_OUTLINE = "an outline without text"

LONGEST_OUTLINE = 200
"""Characters of an outline that is made of a path's first sentence."""

_SENTENCE_END = re.compile(r"[.!?:](?=\s)|\n|[。！？]")  # noqa: RUF001 (Chinese and Japanese full stops)
_NUMBERING = re.compile(r"[\s#*>-]*(?:\d+[.)]\s+)?")

Convert = Callable[[Children, str | None], Sequence]
"""What stands in a path, and the path's label -> texts and blocks."""


@dataclass(frozen=True)
class Branch:
    """A path as it was found."""

    label: str | None
    children: Children


def make_block(
    plans: Sequence[tuple[str | None, str]],
    branches: Sequence[Branch],
    conclusion: str,
    parent: str | None,
    convert: Convert,
    where: str,
) -> Block:
    """One block.

    Args:
        plans: (label, text) of each outline.
        branches: in any order; those without labels belong to the outlines by place, if no outline or path has one.
        parent: label of the path around the block.
        convert: how the inside of a path becomes texts and blocks.
        where: of the block, for errors.

    Raises:
        Rejected: outlines and paths do not belong together, or one of them is empty.
    """
    order = _pair([label for label, _ in plans], [branch.label for branch in branches], where)
    outlines, paths = [], []
    for number, ((_, text), index) in enumerate(zip(plans, order, strict=True), 1):
        label = child_label(parent, number)
        if not text.strip():
            raise Rejected(EMPTY_OUTLINE, f"outline {number} of the block of {where}")
        parts = convert(branches[index].children, label)
        if not parts:
            raise Rejected(EMPTY_PATH, f"path {number} of the block of {where}")
        outlines.append(Outline(label, text))
        paths.append(Path(label, tuple(parts)))
    return Block(tuple(outlines), tuple(paths), conclusion)


def first_sentence(text: str) -> str:
    """What an outline says where the format has none: the first sentence, without a heading's marks and number.

    It ends before a line break or at a full stop, colon, question or exclamation mark that white space follows; after
    `LONGEST_OUTLINE` characters it is cut between words.
    """
    text = text.strip()
    text = text[_NUMBERING.match(text).end() :]
    end = _SENTENCE_END.search(text)
    sentence = text[: end.end()] if end else text
    if len(sentence) > LONGEST_OUTLINE:
        sentence = sentence[: LONGEST_OUTLINE - 4].rpartition(" ")[0] or sentence[: LONGEST_OUTLINE - 4]
        return f"{sentence} ..."
    return sentence.strip().rstrip(":*").strip()


def _pair(plans: list[str | None], paths: list[str | None], where: str) -> list[int]:
    """For each outline the index of its path."""
    if any(label is None for label in [*plans, *paths]):
        if any(label is not None for label in [*plans, *paths]):
            raise Rejected(NO_LABEL, f"the block of {where} has labels {_shown(plans)} and {_shown(paths)}")
        plans, paths = [str(i) for i in range(len(plans))], [str(i) for i in range(len(paths))]
    for labels in (plans, paths):
        twice = [label for label, count in Counter(labels).items() if count > 1]
        if twice:
            raise Rejected(SAME_LABEL, f"{twice[0]} in the block of {where}")
    for reason, missing in ((NO_OUTLINE, set(paths) - set(plans)), (NO_PATH, set(plans) - set(paths))):
        if missing:
            raise Rejected(reason, f"the block of {where} has outlines {_shown(plans)} and paths {_shown(paths)}")
    index_of = {label: index for index, label in enumerate(paths)}
    return [index_of[label] for label in plans]


def _shown(labels: Sequence[str | None]) -> str:
    shown = ", ".join(label or "(none)" for label in labels[:8])
    return (shown or "none") + (", ..." if len(labels) > 8 else "")
