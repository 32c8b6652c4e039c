"""Runs an unmodified transformers model on the chosen tokens, with the engine's attention and the engine's cache.

All tokens of a pass are one sequence of N tokens. In each layer their keys and values are written into the cache first,
then every run of neighbouring rows is one attention call on a view of the cache; the mask is built once per pass.

Shape suffixes: N tokens of a pass, R rows of a run, Q queries of a row (padded), H query heads, K key heads,
G query heads per key head, S slots, D head width, V vocabulary, M nodes of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from mvtrain.engine.kv_cache import KVCache
from mvtrain.engine.scheduler import Chosen

NAME = "multiverse_engine"


@dataclass
class Run:
    """Neighbouring rows of the cache that share one attention call."""

    first_row: int
    num_rows: int
    num_queries: int
    num_slots: int
    tokens: slice
    """The run's tokens among the N of the pass."""
    mask: torch.Tensor
    """(R, 1, G * Q, S), 0 where visible and -inf elsewhere."""
    gather: torch.Tensor | None
    """(R * Q,) index of the token for every padded query, or None where nothing is padded."""
    scatter: torch.Tensor | None
    """(tokens of the run,) index of the padded query for every token."""


@dataclass
class ForwardPass:
    """What attention needs to know of a pass. It reaches attention through the model's keyword arguments."""

    cache: KVCache
    rows_N: torch.Tensor
    slots_N: torch.Tensor
    runs: list[Run]


def engine_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    forward_pass: ForwardPass | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (1, H, N, D), key and value (1, K, N, D) -> (1, N, H, D)."""
    assert forward_pass is not None and attention_mask is None, f"{NAME!r} attention runs inside of the engine only"
    cache, layer = forward_pass.cache, module.layer_idx
    k_NKD, v_NKD = key[0].transpose(0, 1), value[0].transpose(0, 1)
    cache.write(layer, forward_pass.rows_N, forward_pass.slots_N, k_NKD, v_NKD)
    keys, values = cache.keys[layer], cache.values[layer]
    outputs = [_attend(query[0], keys, values, run, scaling) for run in forward_pass.runs]
    return torch.cat(outputs)[None] if len(outputs) > 1 else outputs[0][None], None


def _attend(
    q_HND: torch.Tensor, k_RKSD: torch.Tensor, v_RKSD: torch.Tensor, run: Run, scaling: float | None
) -> torch.Tensor:
    """One run, (tokens of the run, H, D). The G queries of a key head are folded into the queries: no copy of k, v."""
    rows = slice(run.first_row, run.first_row + run.num_rows)
    k_RKSD, v_RKSD = k_RKSD[rows, :, : run.num_slots], v_RKSD[rows, :, : run.num_slots]
    num_heads, head_dim, num_kv_heads = q_HND.shape[0], q_HND.shape[2], k_RKSD.shape[1]
    q_HND = q_HND[:, run.tokens] if run.gather is None else q_HND[:, run.gather]
    q_HRQD = q_HND.unflatten(1, (run.num_rows, run.num_queries))
    q_RKCD = q_HRQD.transpose(0, 1).reshape(run.num_rows, num_kv_heads, -1, head_dim)  # C = G * Q
    o_RKCD = F.scaled_dot_product_attention(q_RKCD, k_RKSD, v_RKSD, attn_mask=run.mask, scale=scaling)
    o_RHQD = o_RKCD.reshape(run.num_rows, num_heads, run.num_queries, head_dim)
    o_NHD = o_RHQD.transpose(1, 2).flatten(0, 1)
    return o_NHD if run.scatter is None else o_NHD[run.scatter]


class Runner:
    """A model and its cache.

    Raises ValueError for models whose attention the engine does not have.
    """

    def __init__(self, model: Any) -> None:
        refuse_unsupported(model.config)
        AttentionInterface.register(NAME, engine_attention)
        self.model = model
        config = model.config
        self.num_groups = config.num_attention_heads // config.num_key_value_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.cache = KVCache(config.num_hidden_layers, config.num_key_value_heads, head_dim, model.dtype, model.device)

    @contextmanager
    def engine_attention(self) -> Iterator[None]:
        """The model runs with the engine's attention in here, and with its own again afterwards."""
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)

    @torch.no_grad()
    def run(self, chosen: Sequence[Chosen]) -> torch.Tensor:
        """Feed the chosen tokens. Returns the logits (N', V) after the last token of each that samples, in order."""
        last = np.cumsum([item.count for item in chosen]) - 1
        keep = last[[item.samples for item in chosen]]  # before the pending tokens are taken
        table_4N, limits = self._take(chosen)
        device = self.model.device
        rows_N, slots_N, tokens_N, positions_N = torch.from_numpy(table_4N).to(device)
        forward_pass = ForwardPass(self.cache, rows_N, slots_N, self._runs(chosen, table_4N[0], limits))
        output = self.model(
            input_ids=tokens_N[None],
            position_ids=positions_N[None],
            use_cache=False,
            logits_to_keep=torch.from_numpy(keep).to(device),
            forward_pass=forward_pass,
        )
        return output.logits[0]

    def _take(self, chosen: Sequence[Chosen]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Give every token a slot. Returns (row, slot, token, position) x N and the limits of every token."""
        table, limits, nodes = [], [], []
        for item in chosen:
            slots = self.cache.reserve(item.row, item.count)
            for slot, (token, token_limits) in zip(slots, item.branch.take_pending(item.count), strict=True):
                table.append((item.row, slot, token.token, token.position))
                nodes.append((item.branch.node, token.index))
                limits.append(token_limits)
        table_4N = np.array(table, dtype=np.int64).T
        described = torch.from_numpy(np.concatenate([table_4N[:2], np.array(nodes, dtype=np.int64).T]))
        self.cache.describe(*described.to(self.model.device))
        return table_4N, limits

    def _runs(self, chosen: Sequence[Chosen], row_N: np.ndarray, limits: list[np.ndarray]) -> list[Run]:
        """Cut the tokens into runs of neighbouring rows with about as many queries each: padding stays below 4x."""
        rows, starts, counts = np.unique(row_N, return_index=True, return_counts=True)
        size = np.ceil(np.log(counts) / np.log(4) - 1e-9)
        cuts = np.flatnonzero((np.diff(rows) > 1) | (np.diff(size) != 0)) + 1
        bounds = [0, *cuts.tolist(), len(rows)]
        return [self._one_run(int(rows[a]), starts[a:b], counts[a:b], limits) for a, b in pairwise(bounds)]

    def _one_run(self, first_row: int, start_R: np.ndarray, count_R: np.ndarray, limits: list[np.ndarray]) -> Run:
        device, num_rows, num_queries = self.model.device, len(count_R), int(count_R.max())
        tokens = slice(int(start_R[0]), int(start_R[-1] + count_R[-1]))
        gather = scatter = None
        query_RQ = np.minimum(np.arange(num_queries), count_R[:, None] - 1) + start_R[:, None]
        if count_R.min() != num_queries:
            gather = torch.from_numpy(query_RQ.ravel()).to(device)
            real_RQ = np.arange(num_queries) < count_R[:, None]
            scatter = torch.from_numpy(np.flatnonzero(real_RQ)).to(device)
        # The last column stays 0: nodes that no query of the run knows.
        limits_RQM = np.zeros((num_rows * num_queries, max(map(len, limits[tokens])) + 1), dtype=np.int32)
        for query, token in enumerate(query_RQ.ravel().tolist()):
            limits_RQM[query, : len(limits[token])] = limits[token]
        limits_RQM = torch.from_numpy(limits_RQM.reshape(num_rows, num_queries, -1)).to(device)
        num_slots = max(self.cache.used[first_row : first_row + num_rows])
        mask = self._mask(first_row, num_slots, limits_RQM)
        return Run(first_row, num_rows, num_queries, num_slots, tokens, mask, gather, scatter)

    def _mask(self, first_row: int, num_slots: int, limits_RQM: torch.Tensor) -> torch.Tensor:
        """A query sees a slot if and only if the slot's index is below the query's limit for the slot's node."""
        num_rows, num_queries, num_nodes = limits_RQM.shape
        rows = slice(first_row, first_row + num_rows)
        # Empty slots name any node; their index hides them.
        node_R1S = self.cache.node_RS[rows, None, :num_slots].clamp(max=num_nodes - 1)
        limit_RQS = limits_RQM.gather(2, node_R1S.expand(-1, num_queries, -1))
        hidden_RQS = self.cache.index_RS[rows, None, :num_slots] >= limit_RQS
        mask_RQS = torch.zeros(hidden_RQS.shape, dtype=self.model.dtype, device=self.model.device)
        mask_RQS.masked_fill_(hidden_RQS, float("-inf"))
        mask_RGQS = mask_RQS[:, None].expand(-1, self.num_groups, -1, -1)
        return mask_RGQS.reshape(num_rows, 1, self.num_groups * num_queries, num_slots)


def refuse_unsupported(config: Any) -> None:
    """Raises ValueError for models whose attention depends on more than positions and visibility."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(f"the engine has full attention only; the model has layers of {', '.join(sorted(kinds))}")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type in ("dynamic", "longrope"):
        raise ValueError(f"rope type {rope_type!r} changes cached keys as the text grows; the engine cannot use it")
