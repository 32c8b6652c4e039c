"""What a conversion proves about its result. Each check returns one entry for the manifest or raises ConversionError.

Shape suffixes: V rows of the embedding matrix, D hidden width, T tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mvtrain.layout import TAGS

_CHUNK_ROWS = 8192
_PROMPTS = (
    "The capital of France is",
    "def add(a, b):\n    return a + b\n",
    "1 + 2 = 3, so 3 - 2 = 1. Therefore, the answer",
)
_TAGGED_TEXT = "Let's think in parallel.\n<Parallel>\n<Goal>\n</Goal>\n<Path>\n1: x</Path>\n<Conclusion>y</Conclusion>"


class ConversionError(ValueError):
    """A check of the converted checkpoint failed. Nothing was left behind."""


@dataclass(frozen=True)
class Observation:
    """What the model computed before anything was changed."""

    texts: tuple[str, ...]
    prompts: tuple[list[int], ...]
    special_tokens: frozenset[str]
    known: int
    """Logits of this many ids are kept: those of real tokens."""
    logits: tuple[torch.Tensor, ...]
    """One (T, known) a prompt, in the model's dtype."""


@torch.inference_mode()
def observe(model: torch.nn.Module, tokenizer: Any) -> Observation:
    """Token ids and logits of a few prompts, one of them in the chat template where there is one."""
    texts = list(_PROMPTS)
    question = render_chat(tokenizer, [{"role": "user", "content": "What is 2 + 2?"}], add_generation_prompt=True)
    if question is not None:
        texts.append(question)
    prompts = tuple(tokenizer(text, add_special_tokens=False).input_ids for text in texts)
    known = min(max(tokenizer.get_vocab().values()) + 1, model.get_input_embeddings().weight.shape[0])
    logits = tuple(_logits(model, ids, known) for ids in prompts)
    if not all(each.isfinite().all() for each in logits):
        raise ConversionError(
            f"the model overflows in {model.dtype} before anything is changed; choose another --dtype"
        )
    return Observation(tuple(texts), prompts, frozenset(tokenizer.all_special_tokens), known, logits)


def render_chat(tokenizer: Any, messages: list[dict[str, str]], **settings: Any) -> str | None:
    """`messages` in the chat template, or None where there is none or it refuses them."""
    if not tokenizer.chat_template:
        return None
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception:  # a template is a program, and may raise anything
        return None


def _logits(model: torch.nn.Module, ids: list[int], known: int) -> torch.Tensor:
    return model(_with_rows(ids, known), use_cache=False).logits[0, :, :known].clone()


def _with_rows(ids: list[int], known: int) -> torch.Tensor:
    """(1, T) without the ids that had no row: some tokenizers are ahead of their matrix."""
    return torch.tensor([[id for id in ids if id < known]])


def check_tokenizer(tokenizer: Any, tag_ids: dict[str, int], known: int, before: Observation | None) -> dict[str, Any]:
    """Each tag is one new id, ids ascend in the tags' order, and text without tags is cut as before."""
    for tag, id in tag_ids.items():
        encoded = tokenizer(tag, add_special_tokens=False).input_ids
        if encoded != [id] or id < known:
            raise ConversionError(f"the tokenizer encodes {tag} as {encoded}, expected one id from {known} on")
    ids = list(tag_ids.values())
    if ids != sorted(set(ids)):
        raise ConversionError(f"the tags have the ids {ids}, expected them ascending in the tags' order")
    if before is not None:
        dropped = before.special_tokens - set(tokenizer.all_special_tokens)
        if dropped:
            raise ConversionError(f"tokens that are no longer special: {', '.join(sorted(dropped))}")
        for text, prompt in zip(before.texts, before.prompts, strict=True):
            if tokenizer(text, add_special_tokens=False).input_ids != prompt:
                raise ConversionError(f"the tags change how {text!r} is tokenised")
    return {"check": "tags", "detail": f"each is one id, {ids[0]} to {ids[-1]} in their fixed order"}


def warn_of_spaces(tokenizer: Any) -> list[str]:
    """A warning where the tokenizer puts spaces around tags or normalises the text beside them."""
    ids = tokenizer(_TAGGED_TEXT, add_special_tokens=False).input_ids
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if decoded == _TAGGED_TEXT:
        return []
    return [f"the tokenizer does not keep text around tags as it is: {_TAGGED_TEXT!r} comes back as {decoded!r}"]


def warn_of_reading(folder: Path, tokenizer: Any) -> list[str]:
    """A warning where transformers reads the source's `tokenizer.json` as something else than it is: for some model
    types it puts its own normaliser and pre-tokeniser in place, and adds tokens of its own."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return []
    plain = Tokenizer.from_file(str(file))
    added = sorted(tokenizer.get_vocab().keys() - plain.get_vocab().keys())
    warnings = [f"transformers adds tokens that tokenizer.json has not: {', '.join(added)}"] if added else []
    for text in _PROMPTS:
        if plain.encode(text, add_special_tokens=False).ids != tokenizer(text, add_special_tokens=False).input_ids:
            warnings.append(f"transformers tokenises {text!r} otherwise than tokenizer.json says")
    return warnings


def check_old_rows(name: str, old_VD: torch.Tensor, new_VD: torch.Tensor, tag_ids: dict[str, int]) -> dict[str, Any]:
    """Every row that the source had, except unused ones that a tag took, has the same bits."""
    if len(new_VD) < len(old_VD):
        raise ConversionError(f"{name} has {len(new_VD)} rows, {len(old_VD)} before: rows were dropped")
    tags = set(tag_ids.values())
    for start in range(0, len(old_VD), _CHUNK_ROWS):
        old, new = old_VD[start : start + _CHUNK_ROWS], new_VD[start : min(start + _CHUNK_ROWS, len(old_VD))]
        differs = (_bits(old) != _bits(new)).any(1)
        changed = [start + row for row in differs.nonzero().flatten().tolist() if start + row not in tags]
        if changed:
            raise ConversionError(f"{name} row {changed[0]} changed, and it belongs to no tag")
    kept = len(old_VD) - sum(id < len(old_VD) for id in tags)
    return {"check": f"old rows of {name}", "detail": f"{kept} rows bit-equal", "rows": kept}


@torch.inference_mode()
def check_logits(model: torch.nn.Module, before: Observation, num_rows: int) -> dict[str, Any]:
    """Logits of the old tokens are what they were.

    Through the first `num_rows` rows of the head, as many as it had before, they must have the same bits. The whole
    head, where it grew, is multiplied in other tiles, which may sum in another order: there, two steps of the dtype's
    precision at the largest logit are allowed.
    """
    head = model.get_output_embeddings().weight
    largest = tolerance = 0.0
    for ids, expected in zip(before.prompts, before.logits, strict=True):
        output = model(_with_rows(ids, before.known), use_cache=False, output_hidden_states=True)
        same_rows = torch.nn.functional.linear(output.hidden_states[-1], head[:num_rows])
        exact = _difference(same_rows[0, :, : before.known], expected)
        if exact != 0:
            raise ConversionError(f"logits of old tokens changed by {exact:.3g}")
        largest = max(largest, _difference(output.logits[0, :, : before.known], expected))
        if len(head) > num_rows:
            step = max(2 * torch.finfo(expected.dtype).eps, 32 * torch.finfo(torch.float32).eps)
            tolerance = max(tolerance, step * expected.abs().max().item())
    if not largest <= tolerance:
        raise ConversionError(f"logits of old tokens changed by {largest:.3g}, allowed is {tolerance:.3g}")
    tokens = sum(len(ids) for ids in before.prompts)
    dtype = str(before.logits[0].dtype).removeprefix("torch.")
    return {
        "check": "logits of old tokens",
        "detail": f"bit-equal through the old rows; largest difference {largest:.3g} (allowed {tolerance:.3g}) through "
        f"the whole head; {len(before.prompts)} prompts, {tokens} tokens, in {dtype} on the CPU",
        "largest_difference": largest,
        "tolerance": tolerance,
        "dtype": dtype,
    }


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest absolute difference; NaN where either has one."""
    return (a.double() - b.double()).abs().max().item()


def check_saved_weights(folder: Path, model: torch.nn.Module) -> dict[str, Any]:
    """The tensors in `folder` have the bits of those in memory, none is absent, and the config fits them."""
    expected = model.state_dict()
    seen = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                if name not in expected or not _bit_equal(shard.get_tensor(name), expected[name]):
                    raise ConversionError(f"{file.name}: tensor {name} differs from the one in memory")
                seen.add(name)
    places = {expected[name].data_ptr() for name in seen}  # a tied lm_head is not written twice
    absent = [name for name in expected if name not in seen and expected[name].data_ptr() not in places]
    if absent:
        raise ConversionError(f"{len(absent)} tensors were not written, {absent[0]} among them")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = model.get_input_embeddings().weight.shape[0]
    if config["vocab_size"] != rows:
        raise ConversionError(f"config.json says vocab_size {config['vocab_size']}, the matrix has {rows} rows")
    return {"check": "weights on disk", "detail": f"{len(seen)} tensors bit-equal to memory", "tensors": len(seen)}


def check_saved_tokenizer(folder: Path, tokenizer: Any) -> dict[str, Any]:
    """The tokenizer in `folder` has the same entries, special tokens and chat template, and the same ids for text."""
    saved = AutoTokenizer.from_pretrained(str(folder))
    if saved.get_vocab() != tokenizer.get_vocab():
        raise ConversionError("the saved tokenizer has other entries")
    if saved.chat_template != tokenizer.chat_template:
        raise ConversionError("the saved tokenizer has another chat template")
    lost = set(tokenizer.all_special_tokens) - set(saved.all_special_tokens)
    if lost:
        raise ConversionError(f"special tokens were lost in saving: {', '.join(sorted(lost))}")
    for text in (*TAGS, *_PROMPTS, _TAGGED_TEXT):
        ids, expected = (t(text, add_special_tokens=False).input_ids for t in (saved, tokenizer))
        if ids != expected:
            raise ConversionError(f"the saved tokenizer encodes {text!r} as {ids}, expected {expected}")
    return {"check": "tokenizer on disk", "detail": f"{len(saved)} entries, same ids, same chat template"}


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's bits as integers: equal even where a number is NaN, unequal for 0.0 and -0.0."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.view(kinds[tensor.element_size()])


def _bit_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
