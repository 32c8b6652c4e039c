"""A learning rate of its own for the tags' rows of the embedding and the head.

The tags are new: their rows start near a description and have far to go, while the rest of a trained matrix should
hardly move. AdamW's step does not depend on the size of a gradient, so scaling the rows' gradients would do nothing.
Instead every row is the matrix's plus a correction that is a parameter of its own, with its own rate; the export adds
them up. The rows then move by both rates together, so the corrections' rate is what is missing to `tag_learning_rate`.

Shape suffixes: T tokens, G tags, E hidden width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class EmbeddedTags(nn.Module):
    """Adds the corrections to the embeddings of tags."""

    def __init__(self, correction_GE: nn.Parameter, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.correction = correction_GE
        self.ids = ids

    def forward(self, ids_1T: torch.Tensor, embedded_1TE: torch.Tensor) -> torch.Tensor:
        tag_ids_G = ids_1T.new_tensor(self.ids)
        is_tag_1TG = ids_1T[..., None] == tag_ids_G
        where_T = is_tag_1TG.any(-1)[0].nonzero().flatten()
        added_NE = F.embedding(is_tag_1TG[0, where_T].long().argmax(-1), self.correction)
        return embedded_1TE.index_add(1, where_T, added_NE[None].to(embedded_1TE.dtype))


class TagLogits(nn.Module):
    """Adds the corrections to the logits of tags."""

    def __init__(self, correction_GE: nn.Parameter, ids: tuple[int, ...]) -> None:
        super().__init__()
        self.correction = correction_GE
        self.ids = ids

    def forward(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids_G = torch.tensor(self.ids, device=logits.device)
        return logits.index_add(-1, ids_G, F.linear(hidden, self.correction).to(logits.dtype))


def add_tag_rows(lm: nn.Module, ids: tuple[int, ...]) -> list[nn.Parameter]:
    """Give a causal LM corrections of its tags' rows, all zero; its own forward pass uses them.

    Args:
        ids: the tags' token ids.

    Returns:
        The new parameters, (G, E) each, in the dtype of the matrix they belong to: one where head and embedding are
        tied, two otherwise. Training code that computes logits by itself has to add the last one.
    """
    embedding, head = lm.get_input_embeddings(), lm.lm_head
    width = lm.config.hidden_size

    def correction(weight: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(torch.zeros(len(ids), width, dtype=weight.dtype, device=weight.device))

    first = correction(embedding.weight)
    parameters = [first] if head.weight is embedding.weight else [first, correction(head.weight)]
    lm.embedded_tags, lm.tag_logits = EmbeddedTags(first, ids), TagLogits(parameters[-1], ids)
    embedding.register_forward_hook(lambda module, args, output: lm.embedded_tags(args[0], output))
    head.register_forward_hook(lambda module, args, output: lm.tag_logits(args[0], output))
    return parameters


def merge_tag_rows(state: dict[str, torch.Tensor], ids: tuple[int, ...], tied: bool) -> dict[str, torch.Tensor]:
    """The whole state dict of an LM with corrections as that of one without: each added to its rows.

    Args:
        state: changed in place where a matrix has corrections.
        tied: the head is the embedding.
    """
    rows_G = torch.tensor(ids)
    for name, matrix in (("embedded_tags", "model.embed_tokens.weight"), ("tag_logits", "lm_head.weight")):
        correction_GE = state.pop(f"{name}.correction", None)
        if correction_GE is not None and not (tied and name == "tag_logits"):
            state[matrix] = state[matrix].index_add(0, rows_G, correction_GE.to(state[matrix].dtype))
    return state


def correction_rate(rate: float, learning_rate: float, tag_learning_rate: float) -> float:
    """The corrections' rate while all else has `rate`, of a peak of `learning_rate`."""
    return rate * (tag_learning_rate / learning_rate - 1)
