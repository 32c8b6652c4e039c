"""A prompt that several requests share: it goes through the model once, and its keys and values are kept once."""

from __future__ import annotations

from collections.abc import Sequence


class Prefix:
    """All of a prompt but its last token, which every request feeds by itself to get its own first token.

    It is in the cache, in row `row`, from when the first of its requests is admitted until the last is through.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt[:-1])
        self.row: int | None = None
        self.num_fed = 0
        self.num_unfinished = 0
        """Requests that still need it."""

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_fed if self.row is not None else 0

    @property
    def num_next(self) -> int:
        return self.num_pending

    @property
    def in_prefill(self) -> bool:
        return True

    @property
    def ready(self) -> bool:
        return self.row is not None and self.num_fed == len(self.tokens)
