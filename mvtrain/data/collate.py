"""A pack of examples -> one batch: ids, labels, positions and layout. Shape suffixes: T tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mvtrain.data.examples import Example
from mvtrain.data.kinds import token_kinds
from mvtrain.layout import Layout, Scheme, TagIds

IGNORED = -100
"""The label of a token that is no target, as in `torch.nn.functional.cross_entropy`."""

_FILLER_LENGTH = 128  # padding in short documents costs attention next to nothing


@dataclass(frozen=True, eq=False)
class Batch:
    """One pack, as a model reads it."""

    input_ids: torch.Tensor
    """(1, T) long."""
    labels: torch.Tensor
    """(1, T) long: labels[0, t] is the id at t, or -100; the loss shifts, as Hugging Face models do."""
    position_ids: torch.Tensor
    """(1, T) long."""
    kinds: torch.Tensor
    """(1, T) long: what sort of token each one is; see `mvtrain.data.kinds`."""
    layout: Layout
    num_targets: int
    """Labels that a shifted loss counts; 0 for an empty pack."""
    example_ids: tuple[str, ...]
    """`where` of each example."""

    @property
    def num_tokens(self) -> int:
        """T, padding included."""
        return self.input_ids.shape[1]

    @property
    def targets(self) -> torch.Tensor:
        """(1, T) long: targets[0, t] is what the model should say after t, or -100: the labels, shifted."""
        return shifted(self.labels, IGNORED)

    @property
    def target_kinds(self) -> torch.Tensor:
        """(1, T) long: `kinds` of the targets."""
        return shifted(self.kinds, 0)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`. The layout stays where it is: it is made of plain numbers."""
        return replace(
            self,
            input_ids=self.input_ids.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            kinds=self.kinds.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return replace(
            self,
            input_ids=self.input_ids.pin_memory(),
            labels=self.labels.pin_memory(),
            position_ids=self.position_ids.pin_memory(),
            kinds=self.kinds.pin_memory(),
        )


def collate(examples: Sequence[Example], tags: TagIds, scheme: Scheme = "isolated", pad_to: int | None = None) -> Batch:
    """Put examples behind each other; they do not see each other.

    A label is -100 in a prompt, in padding, and on the first token of a document, so that a shifted loss never asks a
    document for the start of the next. An empty pack becomes one token (or `pad_to`) without a target, so that a rank
    with nothing to do can still take part in collectives.

    Args:
        examples: the documents; may be empty.
        scheme: see `Layout.from_ids`.
        pad_to: fill up to this many tokens with documents of their own, without targets.

    Raises:
        ValueError: the examples have more than `pad_to` tokens.
    """
    documents = [torch.from_numpy(example.input_ids).long() for example in examples]
    labels = [_labels(ids_T, example.prompt_length) for ids_T, example in zip(documents, examples, strict=True)]
    num_tokens = sum(len(ids_T) for ids_T in documents)
    if pad_to is not None and num_tokens > pad_to:
        raise ValueError(f"the pack has {num_tokens} tokens, more than pad_to={pad_to}")
    for length in _filler_lengths((pad_to or max(num_tokens, 1)) - num_tokens):
        documents.append(torch.full((length,), _filler_id(tags)))
        labels.append(torch.full((length,), IGNORED))
    layout = Layout.pack([Layout.from_ids(ids_T, tags, scheme) for ids_T in documents])
    labels_T = torch.cat(labels)
    return Batch(
        input_ids=torch.cat(documents)[None],
        labels=labels_T[None],
        position_ids=layout.position_ids[None],
        kinds=torch.cat([token_kinds(ids_T, tags) for ids_T in documents])[None],
        layout=layout,
        num_targets=int((labels_T[1:] != IGNORED).sum()),
        example_ids=tuple(example.where for example in examples),
    )


def shifted(values_1T: torch.Tensor, last: int) -> torch.Tensor:
    """Each token gets its successor's value, the last one `last`."""
    return torch.cat([values_1T[:, 1:], values_1T.new_full((1, 1), last)], dim=1)


def _labels(ids_T: torch.Tensor, prompt_length: int) -> torch.Tensor:
    labels_T = ids_T.clone()
    labels_T[: max(prompt_length, 1)] = IGNORED
    return labels_T


def _filler_lengths(num_tokens: int) -> list[int]:
    whole, rest = divmod(num_tokens, _FILLER_LENGTH)
    return [_FILLER_LENGTH] * whole + [rest] * (rest > 0)


def _filler_id(tags: TagIds) -> int:
    """The least id that is no tag: what it says does not matter, as it is neither a target nor seen by an example."""
    return next(id for id in range(len(tags.as_tuple()) + 1) if id not in tags.as_tuple())
