"""Runs an unmodified transformers model on the tokens of a pass, with the engine's attention and the engine's cache.

All tokens of a pass are one sequence of N tokens. What attention needs to know is worked out once, by the cache; every
layer then writes its keys and values and attends.

Shape suffixes: N tokens of a pass, H query heads, K key heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface

from mvtrain.engine.graphs import DecodingGraphs
from mvtrain.engine.passes import Piece

NAME = "multiverse_engine"


def engine_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    forward_pass: Any = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, H, N, D), key and value (1, K, N, D) -> (1, N, H, D)."""
    assert forward_pass is not None and attention_mask is None, f"{NAME!r} attention runs inside of the engine only"
    k_NKD, v_NKD = key[0].transpose(0, 1), value[0].transpose(0, 1)
    return forward_pass.attend(module.layer_idx, query[0], k_NKD, v_NKD, scaling)[None], None


class Runner:
    """A model and its cache.

    Args:
        graphs: replay captured graphs where they fit; the cache has to be paged.
    """

    def __init__(self, model: Any, cache: Any, graphs: bool = False) -> None:
        AttentionInterface.register(NAME, engine_attention)
        self.model = model
        self.cache = cache
        self.graphs = DecodingGraphs(self._forward, cache) if graphs else None

    @contextmanager
    def engine_attention(self) -> Iterator[None]:
        """The model runs with the engine's attention in here, and with its own again afterwards."""
        before = self.model.config._attn_implementation
        if before == NAME:
            yield
            return
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    @torch.no_grad()
    def run(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Feed the pieces. Returns the logits (N', V) after the last token of each that samples, in order."""
        ends = np.cumsum([len(piece.tokens) for piece in pieces])
        keep = torch.from_numpy(ends[[piece.samples is not None for piece in pieces]] - 1)
        tokens_N = torch.tensor([token for piece in pieces for token in piece.tokens])
        positions_N = torch.tensor([position for piece in pieces for position in piece.positions])
        device = self.model.device
        inputs = (tokens_N.to(device), positions_N.to(device), keep.to(device))
        forward_pass = self.cache.prepare(pieces)
        if self.graphs is not None and self.graphs.fit(forward_pass):
            return self.graphs.run(*inputs, forward_pass)
        return self._forward(*inputs, forward_pass)

    def _forward(
        self, tokens_N: torch.Tensor, positions_N: torch.Tensor, keep: torch.Tensor, forward_pass: Any
    ) -> torch.Tensor:
        output = self.model(
            input_ids=tokens_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            logits_to_keep=keep,
            forward_pass=forward_pass,
        )
        return output.logits[0]


def refuse_unsupported(config: Any) -> None:
    """Raises ValueError for models whose attention depends on more than positions and visibility."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"the engine has full attention only; the model has layers of {', '.join(sorted(kinds))}")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(f"rope type {rope_type!r} changes cached keys as the text grows; the engine cannot use it")
