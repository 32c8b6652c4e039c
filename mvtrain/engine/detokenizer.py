"""The text of a branch while it grows: characters that are split over tokens wait until they are whole."""

from __future__ import annotations

from mvtrain.engine.branches import Branch
from mvtrain.engine.markup import Markup

_CONTEXT = 4
"""Tokens before the new ones that are decoded along: some tokenizers drop a space at the start of a text."""
_LONGEST = 8
"""Tokens after which text that is no character is taken for what it is."""


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
        start = max(0, self.num_read - _CONTEXT)
        before = self.markup.decode(tokens[start : self.num_read]) if start < self.num_read else ""
        text = self.markup.decode(tokens[start:end])[len(before) :]
        if text.endswith("\ufffd") and not whole and end - self.num_read < _LONGEST:
            return ""
        self.num_read = end
        return text
