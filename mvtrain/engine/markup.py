"""What the engine needs to know of a tokenizer: the tags, the tokens it forces, and where text ends."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from mvtrain.layout import TAGS, TagIds

# Tags that steer a branch. Think and Outline are text to the engine.
_STEERING = ("parallel", "end_parallel", "goal", "end_goal", "path", "end_path", "conclusion", "end_conclusion")


class Markup:
    """A tokenizer seen by the engine. Raises ValueError where it lacks the tags or an end-of-text token."""

    def __init__(self, tokenizer: Any, extra_eos: tuple[int, ...] = ()) -> None:
        self.tokenizer = tokenizer
        self.tags = TagIds.from_tokenizer(tokenizer)
        self.kinds: dict[int, str] = {getattr(self.tags, kind): kind for kind in _STEERING}
        self.eos_ids = {id for id in (tokenizer.eos_token_id, *extra_eos) if id is not None}
        if not self.eos_ids:
            raise ValueError("the tokenizer has no eos_token and generation_config no eos_token_id: answers cannot end")
        self._openings: dict[str, list[int]] = {}
        self._blank: dict[int, bool] = {}

    @cached_property
    def num_tokens(self) -> int:
        """Ids from here on are padding rows of the embedding."""
        return len(self.tokenizer)

    @cached_property
    def separator(self) -> list[int]:
        """The newline before `<Path>` and `<Conclusion>`."""
        return self.encode("\n")

    def path_opening(self, label: str) -> list[int]:
        """`<Path>`, newline, label, colon."""
        if label not in self._openings:
            self._openings[label] = [self.tags.path, *self.encode(f"\n{label}:")]
        return self._openings[label]

    def final_answer(self, prefix: str, thinking: bool) -> list[int]:
        """What ends the reasoning, if it is still open, and opens the answer."""
        return self.encode(f"\n</Think>\n\n{prefix}" if thinking else f"\n\n{prefix}")

    def is_blank(self, token: int) -> bool:
        """Whether a token is nothing but white space."""
        if token not in self._blank:
            self._blank[token] = not self.decode([token]).strip()
        return self._blank[token]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        # The tags are special tokens: skipping those would drop the structure.
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text_of(self, tag_id: int) -> str:
        return TAGS[self.tags.as_tuple().index(tag_id)]
