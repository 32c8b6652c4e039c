"""Tiny autoregressive checkpoints on disk, for the tests of conversion."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny import tiny_model, tiny_tokenizer

ENTRIES = 259  # 256 bytes, <|im_end|>, <|im_start|> and <|endoftext|>
TAG_IDS = tuple(range(259, 271))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def source_tokenizer():
    """Without the tags. transformers adds <|endoftext|> to every tokenizer of a Qwen2 model, so it is there already."""
    tokenizer = tiny_tokenizer(with_tags=False)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|endoftext|>"]}, replace_extra_special_tokens=False)
    return tokenizer


def save_source(folder: Path, family: str = "qwen2", *, vocab_size: int = ENTRIES, edit=None, **settings) -> Path:
    """An autoregressive checkpoint on disk. `edit(model)` may change it before it is saved."""
    model = tiny_model(family, vocab_size=vocab_size, **settings)
    if edit is not None:
        edit(model)
    model.save_pretrained(folder)
    source_tokenizer().save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def byte_ids(text: str) -> list[int]:
    """Ids of printable ASCII: the tokenizer's alphabet is sorted, and begins with the characters from "!" on."""
    return [ord(character) - ord("!") for character in text]
