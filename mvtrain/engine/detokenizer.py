"""The text of a branch while it grows: characters that are split over tokens wait until they are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mvtrain.engine.branches import Branch
from mvtrain.engine.markup import Markup

_CONTEXT = 4
"""Tokens before the new ones that are decoded along: some tokenizers drop a space at the start of a text."""
_LONGEST = 8
"""Tokens after which text that is no character is taken for what it is."""


Decode = Callable[[list[int]], str]


class Detokenizer:
    """Turns the tokens of one branch into text, piece by piece. All pieces together are the text of all tokens."""

    def __init__(self, branch: Branch, markup: Markup) -> None:
        self.branch = branch
        self.markup = markup
        self.num_read = 0
        """Tokens whose text has been given out."""

    def read(self, end: int | None = None, whole: bool = False) -> str:
        """The text up to offset `end` (or of all tokens there are) that has not been given out.

        What may be the first half of a character waits, unless nothing comes after it (`whole`).
        """
        tokens = self.branch.tokens
        end = len(tokens) if end is None else end
        if end == self.num_read:
            return ""
        text = _piece(self.markup.decode, tokens, self.num_read, end)
        if not whole and _is_unfinished(text, end - self.num_read):
            return ""
        self.num_read = end
        return text


def token_ends(ids: Sequence[int], text: str, decode: Decode) -> list[int]:
    """For every token, how many characters of `text` there are up to its end.

    A token that ends within a character counts for none of it; tokens after the end of `text` repeat its length.
    """
    ends: list[int] = []
    length, whole = 0, 0  # characters, and the tokens that they are of
    for end in range(1, len(ids) + 1):
        piece = _piece(decode, ids, whole, end)
        if not _is_unfinished(piece, end - whole):
            length, whole = length + len(piece), end
        ends.append(min(length, len(text)))
    return ends


def _piece(decode: Decode, ids: Sequence[int], start: int, end: int) -> str:
    """The text of tokens [start, end), decoded with what stands before them."""
    first = max(0, start - _CONTEXT)
    before = decode(list(ids[first:start])) if first < start else ""
    return decode(list(ids[first:end]))[len(before) :]


def _is_unfinished(piece: str, num_tokens: int) -> bool:
    """Whether it may end in the first part of a character."""
    return piece.endswith("\ufffd") and num_tokens < _LONGEST
