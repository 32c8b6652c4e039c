"""The KV cache of the CPU: a row of slots per request, and for every slot which token of which node it holds.

Attention runs over views of the cache. Neighbouring rows share one call where that costs less than a call of their own,
and requests that share a prompt attend to it in one call, joined with the other by log-sum-exp.

Shape suffixes: R rows, K key heads, S slots of a row, D head width, N tokens of a pass, Q queries of a row (padded),
H query heads, G query heads per key head, M nodes of a request, T tokens of a run or of all requests with one prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mvtrain.attention.merge import merge_
from mvtrain.engine.lazy_memory import LazyTensor
from mvtrain.engine.pages import Pages
from mvtrain.engine.passes import Piece

EMPTY = np.iinfo(np.int32).max
"""The index of a slot that holds nothing: above every limit, so nobody sees it."""
CALL = 1_500
"""What one attention call costs more than its work, in (query, slot) pairs of a row: about 50 microseconds."""


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
    """(R * Q,) index, in the run, of the token for every padded query, or None where nothing is padded."""
    scatter: torch.Tensor | None
    """(T,) index of the padded query for every token."""


@dataclass
class PrefixRun:
    """All tokens of the requests that share one prompt: every one of them sees all of it."""

    row: int
    num_slots: int
    tokens_T: torch.Tensor


class RowCache:
    """Rows and slots grow by doubling; memory is taken when slots are written and given back with the row.

    Args:
        num_pages: see `Pages`.
    """

    device = torch.device("cpu")

    def __init__(
        self, num_layers: int, num_heads: tuple[int, int], head_dim: int, dtype: torch.dtype, num_pages: int | None
    ) -> None:
        num_query_heads, self.num_kv_heads = num_heads
        self.num_groups = num_query_heads // self.num_kv_heads
        self.head_dim, self.dtype, self.num_layers = head_dim, dtype, num_layers
        self.pages = Pages(num_pages)
        self.node_RS = torch.zeros((0, 256), dtype=torch.long)
        self.index_RS = torch.full((0, 256), EMPTY, dtype=torch.int32)
        self._memory: list[LazyTensor] = []
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def resident_bytes(self) -> int:
        """Memory that keys and values hold at present."""
        return sum(memory.resident_bytes() for memory in self._memory)

    def release(self, row: int) -> None:
        """Forget what the row holds. What it held must go: a stale infinity would spoil 0 * value."""
        self.pages.close(row)
        if row < len(self.index_RS):
            self.index_RS[row] = EMPTY
            for memory in self._memory:
                memory.forget(row)

    def prepare(self, pieces: Sequence[Piece]) -> RowPass:
        """Give every token of the pass a slot, and work out what each of them sees. Pieces of a row stand together."""
        count_N = [len(piece.tokens) for piece in pieces]
        row_N = np.repeat([piece.row for piece in pieces], count_N)
        slot_N = np.concatenate([self.pages.reserve(piece.row, len(piece.tokens)) for piece in pieces])
        index_N = np.concatenate([np.arange(p.index, p.index + len(p.tokens)) for p in pieces])
        node_N = np.repeat([piece.node for piece in pieces], count_N)
        self._grow(int(row_N.max()), int(slot_N.max()))
        rows_N, slots_N = torch.from_numpy(row_N), torch.from_numpy(slot_N)
        self.node_RS[rows_N, slots_N] = torch.from_numpy(node_N)
        self.index_RS[rows_N, slots_N] = torch.from_numpy(index_N).int()
        limits_NM = own_limits(pieces, count_N, node_N, index_N)
        return RowPass(self, rows_N, slots_N, self._runs(row_N, limits_NM), self._prefix_runs(row_N))

    def check_integrity(self) -> None:
        """Assert that every slot in use holds a token, and no other does. For tests."""
        self.pages.check_integrity()
        for row in range(len(self.index_RS)):
            used = self.pages.used(row) if row in self.pages.rows else 0
            assert (self.index_RS[row, used:] == EMPTY).all(), f"row {row} was not released"
            assert (self.index_RS[row, :used] != EMPTY).all()

    def slots_of(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(nodes, indices) of the row's slots in use. For tests."""
        used = self.pages.used(row)
        return (self.node_RS[row, :used], self.index_RS[row, :used]) if used else (torch.empty(0), torch.empty(0))

    def _prefix_runs(self, row_N: np.ndarray) -> list[PrefixRun]:
        prefixes = {int(row): self.pages.prefix_of(int(row)) for row in np.unique(row_N)}
        runs = []
        for prefix in sorted({prefix for prefix in prefixes.values() if prefix is not None}):
            tokens_T = np.flatnonzero(np.isin(row_N, [row for row, own in prefixes.items() if own == prefix]))
            runs.append(PrefixRun(prefix, self.pages.used(prefix), torch.from_numpy(tokens_T)))
        return runs

    def _runs(self, row_N: np.ndarray, limits_NM: np.ndarray) -> list[Run]:
        rows_R, start_R, count_R = np.unique(row_N, return_index=True, return_counts=True)
        slots_R = [self.pages.used(int(row)) for row in rows_R]
        bounds = cut_into_runs(rows_R.tolist(), count_R.tolist(), slots_R)
        return [
            self._one_run(int(rows_R[a]), start_R[a:b], count_R[a:b], max(slots_R[a:b]), limits_NM) for a, b in bounds
        ]

    def _one_run(
        self, first_row: int, start_R: np.ndarray, count_R: np.ndarray, num_slots: int, limits_NM: np.ndarray
    ) -> Run:
        num_rows, num_queries = len(count_R), int(count_R.max())
        tokens = slice(int(start_R[0]), int(start_R[-1] + count_R[-1]))
        gather = scatter = None
        query_RQ = np.minimum(np.arange(num_queries), count_R[:, None] - 1) + start_R[:, None]
        if count_R.min() != num_queries:
            gather = torch.from_numpy(query_RQ.ravel() - tokens.start)
            scatter = torch.from_numpy(np.flatnonzero(np.arange(num_queries) < count_R[:, None]))
        limits_RQM = torch.from_numpy(limits_NM[query_RQ])
        mask = self._mask(first_row, num_slots, limits_RQM)
        return Run(first_row, num_rows, num_queries, num_slots, tokens, mask, gather, scatter)

    def _mask(self, first_row: int, num_slots: int, limits_RQM: torch.Tensor) -> torch.Tensor:
        """A query sees a slot if and only if the slot's index is below the query's limit for the slot's node."""
        num_rows, num_queries, num_nodes = limits_RQM.shape
        rows = slice(first_row, first_row + num_rows)
        # Empty slots name any node; their index hides them.
        node_R1S = self.node_RS[rows, None, :num_slots].clamp(max=num_nodes - 1)
        limit_RQS = limits_RQM.gather(2, node_R1S.expand(-1, num_queries, -1))
        hidden_RQS = self.index_RS[rows, None, :num_slots] >= limit_RQS
        mask_RQS = torch.zeros(hidden_RQS.shape, dtype=self.dtype)
        mask_RQS.masked_fill_(hidden_RQS, float("-inf"))
        mask_RGQS = mask_RQS[:, None].expand(-1, self.num_groups, -1, -1)
        return mask_RGQS.reshape(num_rows, 1, self.num_groups * num_queries, num_slots)

    def _grow(self, row: int, slot: int) -> None:
        num_rows, num_slots = self.node_RS.shape
        while num_rows <= row:
            num_rows = max(1, 2 * num_rows)
        while num_slots <= slot:
            num_slots *= 2
        if (num_rows, num_slots) == tuple(self.node_RS.shape):
            return
        node_RS = self.node_RS.new_zeros((num_rows, num_slots))
        index_RS = self.index_RS.new_full((num_rows, num_slots), EMPTY)
        for new, old in ((node_RS, self.node_RS), (index_RS, self.index_RS)):
            new[: old.shape[0], : old.shape[1]] = old
        self.node_RS, self.index_RS = node_RS, index_RS
        self._allocate()

    def _allocate(self) -> None:
        """Tensors of the present size, with what the old ones hold; one by one, so that only one is there twice."""
        num_rows, num_slots = self.node_RS.shape
        shape = (num_rows, self.num_kv_heads, num_slots, self.head_dim)
        used = {row: state.used for row, state in self.pages.rows.items()}
        for i in range(2 * self.num_layers):
            new = LazyTensor(shape, self.dtype)
            if self._memory[i:]:
                old = self._memory[i].tensor
                for row in range(old.shape[0]):
                    # The slots that are being reserved are beyond the old end.
                    held = min(used.get(row, 0), old.shape[2])
                    new.tensor[row, :, :held] = old[row, :, :held]
                self._memory[i] = new
            else:
                self._memory.append(new)
        self.keys = [memory.tensor for memory in self._memory[::2]]
        self.values = [memory.tensor for memory in self._memory[1::2]]


def own_limits(pieces: Sequence[Piece], count_N: Sequence[int], node_N: np.ndarray, index_N: np.ndarray) -> np.ndarray:
    """(N, M) int32: the limits of every token. The last column stays 0: nodes that none of them knows."""
    num_nodes = max(max(len(piece.limits), piece.node + 1) for piece in pieces)
    limits_NM = np.zeros((len(node_N), num_nodes + 1), dtype=np.int32)
    start = 0
    for piece, count in zip(pieces, count_N, strict=True):
        limits_NM[start : start + count, : len(piece.limits)] = piece.limits
        start += count
    limits_NM[np.arange(len(node_N)), node_N] = index_N + 1
    return limits_NM


def cut_into_runs(rows: list[int], counts: list[int], slots: list[int]) -> list[tuple[int, int]]:
    """Bounds [a, b) of neighbouring rows whose common call, padded to the longest, costs less than calls apart."""
    bounds, begin, apart = [], 0, 0
    for i in range(len(rows)):
        own = CALL + counts[i] * slots[i]
        together = CALL + (i + 1 - begin) * max(counts[begin : i + 1]) * max(slots[begin : i + 1])
        if i > begin and (rows[i] != rows[i - 1] + 1 or together > apart + own):
            bounds.append((begin, i))
            begin, apart = i, 0
            together = own
        apart = together
    return [*bounds, (begin, len(rows))]


@dataclass
class RowPass:
    """What attention needs to know of a pass. It reaches attention through the model's keyword arguments."""

    cache: RowCache
    rows_N: torch.Tensor
    slots_N: torch.Tensor
    runs: list[Run]
    prefix_runs: list[PrefixRun]

    def attend(
        self, layer: int, q_HND: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Keys and values are written first, so tokens of the same pass see each other. Returns (N, H, D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.rows_N, :, self.slots_N] = k_NKD
        values[self.rows_N, :, self.slots_N] = v_NKD
        parts = [_attend(q_HND[:, run.tokens], keys, values, run, scaling) for run in self.runs]
        if not self.prefix_runs:
            return torch.cat([o_THD for o_THD, _ in parts]) if len(parts) > 1 else parts[0][0]
        o_NHD, lse_HN = torch.cat([o_THD for o_THD, _ in parts]), torch.cat([lse_HT for _, lse_HT in parts], dim=1)
        for run in self.prefix_runs:
            o_THD, lse_HT = o_NHD[run.tokens_T].to(lse_HN.dtype), lse_HN[:, run.tokens_T]
            merge_(o_THD, lse_HT, *_attend_to_prefix(q_HND[:, run.tokens_T], keys, values, run, scaling))
            o_NHD[run.tokens_T] = o_THD.to(o_NHD.dtype)
        return o_NHD


def _attend(
    q_HTD: torch.Tensor, k_RKSD: torch.Tensor, v_RKSD: torch.Tensor, run: Run, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One run. Returns out (T, H, D) and its log-sum-exp (H, T)."""
    rows = slice(run.first_row, run.first_row + run.num_rows)
    k_RKSD, v_RKSD = k_RKSD[rows, :, : run.num_slots], v_RKSD[rows, :, : run.num_slots]
    if run.gather is not None:
        q_HTD = q_HTD[:, run.gather]
    q_RHQD = q_HTD.unflatten(1, (run.num_rows, run.num_queries)).transpose(0, 1)
    o_RHQD, lse_RHQ = _folded(q_RHQD, k_RKSD, v_RKSD, run.mask, scaling)
    o_THD, lse_HT = o_RHQD.transpose(1, 2).flatten(0, 1), lse_RHQ.transpose(0, 1).flatten(1)
    return (o_THD, lse_HT) if run.scatter is None else (o_THD[run.scatter], lse_HT[:, run.scatter])


def _attend_to_prefix(
    q_HTD: torch.Tensor, k_RKSD: torch.Tensor, v_RKSD: torch.Tensor, run: PrefixRun, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """All queries against all of a prompt: out (T, H, D) and its log-sum-exp (H, T)."""
    rows = slice(run.row, run.row + 1)
    k_1KSD, v_1KSD = k_RKSD[rows, :, : run.num_slots], v_RKSD[rows, :, : run.num_slots]
    o_1HTD, lse_1HT = _folded(q_HTD[None], k_1KSD, v_1KSD, None, scaling)
    return o_1HTD[0].transpose(0, 1), lse_1HT[0]


def _folded(
    q_RHQD: torch.Tensor,
    k_RKSD: torch.Tensor,
    v_RKSD: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with the G query heads of a key head folded into the queries, so that k and v are not copied."""
    num_heads, num_queries, head_dim = q_RHQD.shape[1:]
    q_RKCD = q_RHQD.reshape(len(q_RHQD), k_RKSD.shape[1], -1, head_dim)  # C = G * Q
    o_RKCD, lse_RKC = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_RKCD, k_RKSD, v_RKSD, 0.0, False, attn_mask=mask, scale=scaling
    )
    heads = (num_heads, num_queries)
    return o_RKCD.reshape(len(q_RHQD), *heads, head_dim), lse_RKC.reshape(len(q_RHQD), *heads)
