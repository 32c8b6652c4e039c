"""CUDA graphs for passes that decode: launching a model's kernels one by one takes longer than they run.

A graph has fixed shapes, so there is one for each bucket of (tokens, pages of the longest row). A pass is padded to its
bucket: padding tokens write to the spare page, belong to no tile, see nothing, and their logits are thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mvtrain.engine.paged_attention import BLOCK, PagedWork, choose_splits, num_processors, seen_blocks
from mvtrain.engine.paged_cache import DECODE_TILE, PagedCache, PagedPass
from mvtrain.engine.pages import PAGE_SIZE

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""Buckets of tokens. Above the last one the kernels run long enough by themselves."""
FIRST_PAGES = 1024 // PAGE_SIZE
"""The first bucket of pages; the next ones have twice as many each."""
WARM_UPS = 2
"""Runs before a capture: they compile kernels and fill what libraries allocate once."""


@dataclass
class _Graph:
    """One bucket: the tensors that a replay reads, and what it writes."""

    tokens_N: torch.Tensor
    positions_N: torch.Tensor
    forward_pass: PagedPass
    replay: Callable[[], torch.Tensor]
    """Runs it; returns logits (N, V)."""


class DecodingGraphs:
    """Captures a graph when a bucket is first needed, and replays it from then on.

    Args:
        forward: (tokens, positions, rows to keep, pass) -> logits.
    """

    def __init__(self, forward: Callable[..., torch.Tensor], cache: PagedCache) -> None:
        if not isinstance(cache, PagedCache):
            raise ValueError("graphs need a paged KV cache: its tensors keep their place")
        self.forward = forward
        self.cache = cache
        self.graphs: dict[tuple[int, int], _Graph] = {}
        self._pool: Any = None

    def fit(self, forward_pass: PagedPass) -> bool:
        """Whether a pass is small enough, and dealt out as a graph has it."""
        num_tokens = len(forward_pass.page_N)
        return num_tokens <= TOKENS[-1] and forward_pass.work.tile_size == DECODE_TILE

    def run(
        self, tokens_N: torch.Tensor, positions_N: torch.Tensor, keep: torch.Tensor, forward_pass: PagedPass
    ) -> torch.Tensor:
        """The logits of the rows `keep`, as `forward` gives them."""
        bucket = bucket_of(len(tokens_N), forward_pass.work.page_RB.shape[1])
        graph = self.graphs.get(bucket)
        if graph is None:
            graph = self.graphs[bucket] = self._capture(*bucket)
        fill(graph, tokens_N, positions_N, forward_pass, self.cache.spare)
        return graph.replay()[keep]

    def _capture(self, num_tokens: int, num_pages: int) -> _Graph:
        graph = self._empty(num_tokens, num_pages)
        inputs = (graph.tokens_N, graph.positions_N, torch.arange(num_tokens, device=self.cache.device))
        if self.cache.device.type != "cuda":  # the same padding, and nothing to capture
            graph.replay = lambda: self.forward(*inputs, graph.forward_pass)
            return graph
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.forward(*inputs, graph.forward_pass)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, pool=self._pool):
            logits_NV = self.forward(*inputs, graph.forward_pass)
        self._pool = captured.pool()

        def replay() -> torch.Tensor:
            captured.replay()
            return logits_NV

        graph.replay = replay
        return graph

    def _empty(self, num_tokens: int, num_pages: int) -> _Graph:
        """Buffers that hold nothing but padding."""

        def full(*shape: int, value: int = 0, dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.full(shape, value, dtype=dtype, device=self.cache.device)

        num_slots = num_pages * PAGE_SIZE
        work = PagedWork(
            page_RB=full(num_tokens, num_pages, value=self.cache.spare, dtype=torch.int32),
            tile_3W=full(3, num_tokens, dtype=torch.int32),
            visible_NS=full(num_tokens, num_slots, dtype=torch.uint8),
            seen_WC=full(num_tokens, -(-num_slots // BLOCK), dtype=torch.uint8),
            tile_size=DECODE_TILE,
            num_splits=splits_of(num_tokens, num_pages, self.cache),
        )
        forward_pass = PagedPass(self.cache, full(num_tokens, value=self.cache.spare), full(num_tokens), work)
        return _Graph(full(num_tokens), full(num_tokens), forward_pass, replay=_not_captured)


def _not_captured() -> torch.Tensor:
    raise AssertionError("the graph was not captured")


def bucket_of(num_tokens: int, num_pages: int) -> tuple[int, int]:
    """The smallest (tokens, pages) that has room."""
    pages = FIRST_PAGES
    while pages < num_pages:
        pages *= 2
    return next(size for size in TOKENS if size >= num_tokens), pages


def splits_of(num_tokens: int, num_pages: int, cache: PagedCache) -> int:
    """As many splits as are good where every token has a tile of its own and a row is half full."""
    num_blocks = num_pages * PAGE_SIZE // BLOCK // 2
    return choose_splits(num_tokens * cache.num_kv_heads, num_blocks, num_processors(cache.device))


def fill(graph: _Graph, tokens_N: torch.Tensor, positions_N: torch.Tensor, forward_pass: PagedPass, spare: int) -> None:
    """Copy a pass into a graph's buffers, and padding into the rest of them."""
    ours, theirs = graph.forward_pass, forward_pass
    _copy(graph.tokens_N, tokens_N, 0)
    _copy(graph.positions_N, positions_N, 0)
    _copy(ours.page_N, theirs.page_N, spare)
    _copy(ours.offset_N, theirs.offset_N, 0)
    _copy(ours.work.page_RB, theirs.work.page_RB, spare)
    _copy(ours.work.tile_3W, theirs.work.tile_3W, 0)
    _copy(ours.work.visible_NS, theirs.work.visible_NS, 0)
    ours.work.seen_WC.copy_(seen_blocks(ours.work.tile_3W, ours.work.visible_NS, DECODE_TILE))


def _copy(buffer: torch.Tensor, values: torch.Tensor, padding: int) -> None:
    buffer.fill_(padding)
    buffer[tuple(slice(size) for size in values.shape)] = values
