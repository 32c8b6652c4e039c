"""Layouts to measure on: synthetic ones of realistic shape, and real traces."""

from __future__ import annotations

import json
import random
from pathlib import Path

from mvtrain.layout import Layout, TagIds

TAGS = TagIds(*range(12))
TEXT = 20  # an id that is no tag

SHAPES = {
    "flat": "one document, blocks of 2 to 6 paths of 30 to 400 tokens with 50 to 600 tokens of text between them",
    "nested": "the same, and a quarter of the paths holds a block of its own",
    "packed": "documents of 1,000 to 6,000 tokens packed behind each other, a quarter of the paths nested",
}


def synthetic(shape: str, num_tokens: int, seed: int = 0) -> Layout:
    """A layout of exactly `num_tokens` tokens; see SHAPES."""
    return Layout.pack([Layout.from_ids(ids, TAGS) for ids in synthetic_ids(shape, num_tokens, seed)])


def synthetic_ids(shape: str, num_tokens: int, seed: int = 0) -> list[list[int]]:
    """The ids of each of its documents."""
    source = random.Random(seed)
    lengths = [num_tokens]
    if shape == "packed":
        lengths = []
        while (left := num_tokens - sum(lengths)) > 0:
            lengths.append(min(left, source.randint(1000, 6000)))
    share_nested = 0.0 if shape == "flat" else 0.25
    return [document_ids(n, share_nested, source) for n in lengths]


def document_ids(num_tokens: int, share_nested: float, source: random.Random) -> list[int]:
    """Ids of a document of exactly `num_tokens` tokens: a question, then text and blocks, text at the end."""
    ids = [TEXT] * min(num_tokens, source.randint(100, 300))
    while True:
        piece = [TEXT] * source.randint(50, 600) + _block(share_nested, source)
        if len(ids) + len(piece) > num_tokens:
            return ids + [TEXT] * (num_tokens - len(ids))
        ids += piece


def _block(share_nested: float, source: random.Random) -> list[int]:
    num_paths = source.randint(2, 6)
    ids = [TAGS.parallel, TAGS.goal] + [TEXT] * 20 * num_paths + [TAGS.end_goal]
    for _ in range(num_paths):
        ids += [TEXT, TAGS.path] + [TEXT] * source.randint(30, 400)
        if source.random() < share_nested:
            ids += _block(0.0, source) + [TEXT] * 30
        ids.append(TAGS.end_path)
    return [*ids, TEXT, TAGS.conclusion] + [TEXT] * source.randint(20, 150) + [TAGS.end_conclusion, TAGS.end_parallel]


def of_traces(path: Path, tokenizer_folder: str, num_tokens: int) -> Layout:
    """The well-formed traces of a JSONL file (column `response`), in order, as many as `num_tokens` hold."""
    from transformers import AutoTokenizer

    from mvtrain.grammar import check

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tags = TagIds.from_tokenizer(tokenizer)
    layouts: list[Layout] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = json.loads(line)["response"]
        if "<Parallel>" not in text or check(text):
            continue
        layout = Layout.from_ids(tokenizer(text).input_ids, tags)
        if sum(x.num_tokens for x in layouts) + layout.num_tokens <= num_tokens:
            layouts.append(layout)
    if not layouts:
        raise ValueError(f"{path} has no well-formed trace with a block of up to {num_tokens} tokens")
    return Layout.pack(layouts)


def without_blocks(layout: Layout) -> Layout:
    """The same documents as plain causal text: what the others are compared with."""
    return Layout.pack([Layout.from_ids([TEXT] * (end - start), TAGS) for start, end in layout.documents])
