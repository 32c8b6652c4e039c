"""The KV cache of a GPU: pages that are all taken at once, and for every row the list of its own.

Rows that share a prompt name the same pages. One more page than there are takes what padding writes.

Shape suffixes: N tokens of a pass, R rows of a pass, B pages of the longest row, P pages, S slots, K key heads,
H query heads, D head width, M nodes of a request, W tiles of queries, C blocks of slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mvtrain.engine.paged_attention import PagedWork, paged_attention, plan_work, visibility
from mvtrain.engine.pages import PAGE_SIZE, Pages
from mvtrain.engine.passes import Piece
from mvtrain.engine.row_cache import EMPTY, own_limits

DECODE_TILE = 16
"""Queries of one row that share a program while it decodes: a block of up to so many paths reads its prefix once."""
PREFILL_TILE = 32
"""The same where a prompt goes through."""


class PagedCache:
    """Keys and values in pages, on any device.

    Args:
        num_pages: see `Pages`; here they are all allocated.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: tuple[int, int],
        head_dim: int,
        dtype: torch.dtype,
        num_pages: int,
        device: torch.device | str = "cuda",
    ) -> None:
        self.num_kv_heads = num_heads[1]
        self.num_layers, self.head_dim, self.dtype = num_layers, head_dim, dtype
        self.device = torch.device(device)
        self.pages = Pages(num_pages)
        self.spare = num_pages
        """The page that belongs to nobody: its slots stay empty, whatever is written there."""
        shape = (num_pages + 1, self.num_kv_heads, PAGE_SIZE, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(num_layers)]
        self.node_PS = torch.zeros(shape[0], PAGE_SIZE, dtype=torch.int32, device=self.device)
        self.index_PS = torch.full((shape[0], PAGE_SIZE), EMPTY, dtype=torch.int32, device=self.device)

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def resident_bytes(self) -> int:
        """Memory of the pages that are in use. All others are held as well, for whoever comes next."""
        return self.pages.num_used * PAGE_SIZE * self.bytes_per_token

    def release(self, row: int) -> None:
        """Forget what the row holds."""
        pages = self.pages.rows[row].pages
        self.pages.close(row)
        if pages:
            self.index_PS[torch.tensor(pages, device=self.device)] = EMPTY

    def prepare(self, pieces: Sequence[Piece]) -> PagedPass:
        """Give every token of the pass a slot, and work out what each of them sees. Pieces of a row stand together."""
        count_N = [len(piece.tokens) for piece in pieces]
        places = [self._place(piece) for piece in pieces]
        page_N, offset_N = (np.concatenate(parts) for parts in zip(*places, strict=True))
        index_N = np.concatenate([np.arange(p.index, p.index + len(p.tokens)) for p in pieces])
        node_N = np.repeat([piece.node for piece in pieces], count_N)
        rows_R, row_N = np.unique(np.repeat([piece.row for piece in pieces], count_N), return_inverse=True)
        page_N, offset_N, row_N = self._tensors(page_N, offset_N, row_N)
        self.node_PS[page_N, offset_N] = self._tensors(node_N)[0].int()
        self.index_PS[page_N, offset_N] = self._tensors(index_N)[0].int()
        limits_NM = self._tensors(own_limits(pieces, count_N, node_N, index_N))[0]
        page_RB = self._page_table(rows_R.tolist())
        visible_NS = visibility(limits_NM, row_N, page_RB, self.node_PS, self.index_PS)
        counts = _counts(pieces)
        tile = DECODE_TILE if max(counts) <= 4 * DECODE_TILE else PREFILL_TILE
        work = plan_work(counts, page_RB, visible_NS, tile, self.num_kv_heads)
        return PagedPass(self, page_N, offset_N, work)

    def check_integrity(self) -> None:
        """Assert that every slot in use holds a token, and no other does. For tests."""
        self.pages.check_integrity()
        in_use = torch.zeros(self.index_PS.shape, dtype=torch.bool)
        for state in self.pages.rows.values():
            for k, page in enumerate(state.pages):
                in_use[page, : state.used - k * PAGE_SIZE] = True
        assert torch.equal(self.index_PS.cpu() != EMPTY, in_use)

    def slots_of(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(nodes, indices) of the row's own slots in use. For tests."""
        pages, used = torch.tensor(self.pages.rows[row].pages, dtype=torch.long), self.pages.used(row)
        return self.node_PS[pages].flatten()[:used].cpu(), self.index_PS[pages].flatten()[:used].cpu()

    def _place(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        slots = np.array(self.pages.reserve(piece.row, len(piece.tokens)))
        return np.array(self.pages.rows[piece.row].pages)[slots // PAGE_SIZE], slots % PAGE_SIZE

    def _page_table(self, rows: Sequence[int]) -> torch.Tensor:
        lists = [self.pages.visible_pages(row) for row in rows]
        page_RB = np.full((len(rows), max(map(len, lists))), self.spare, dtype=np.int32)
        for row, pages in enumerate(lists):
            page_RB[row, : len(pages)] = pages
        return self._tensors(page_RB)[0]

    def _tensors(self, *arrays: np.ndarray) -> list[torch.Tensor]:
        return [torch.from_numpy(array).to(self.device, non_blocking=True) for array in arrays]


def _counts(pieces: Sequence[Piece]) -> list[int]:
    """Tokens of every row of the pass, in the order of the rows."""
    counts: dict[int, int] = {}
    for piece in pieces:
        counts[piece.row] = counts.get(piece.row, 0) + len(piece.tokens)
    return list(counts.values())


@dataclass
class PagedPass:
    """What attention needs to know of a pass. It reaches attention through the model's keyword arguments."""

    cache: PagedCache
    page_N: torch.Tensor
    offset_N: torch.Tensor
    work: PagedWork

    def attend(
        self, layer: int, q_HND: torch.Tensor, k_NKD: torch.Tensor, v_NKD: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Keys and values are written first, so tokens of the same pass see each other. Returns (N, H, D)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.page_N, :, self.offset_N] = k_NKD
        values[self.page_N, :, self.offset_N] = v_NKD
        scaling = self.cache.head_dim**-0.5 if scaling is None else scaling
        return paged_attention(q_HND.transpose(0, 1), keys, values, self.work, scaling)
