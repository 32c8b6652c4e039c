"""Host memory that is taken page by page, when it is first written: a row of the cache costs what it holds."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch


class LazyTensor:
    """A zeroed tensor on the CPU, whose memory can be given back in parts.

    `tensor` reads as zeros where nothing was written, without taking memory for it.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        self.num_bytes = prod(shape) * dtype.itemsize
        # Private: memory that processes could share is not given back by MADV_DONTNEED.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, max(1, self.num_bytes), **private)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)  # a huge page is taken whole
        self.tensor = torch.frombuffer(self._memory, dtype=dtype, count=prod(shape)).view(*shape)

    def resident_bytes(self) -> int:
        """Memory that is taken; all of it where the system does not tell."""
        pagemap = Path("/proc/self/pagemap")
        if not pagemap.exists():
            return self.num_bytes
        first, count = self.tensor.data_ptr() // mmap.PAGESIZE, -(-self.num_bytes // mmap.PAGESIZE)
        with pagemap.open("rb", buffering=0) as entries:  # 8 bytes a page, the highest bit says whether it is there
            entries.seek(8 * first)
            return int((np.frombuffer(entries.read(8 * count), dtype=np.uint64) >> 63).sum()) * mmap.PAGESIZE

    def forget(self, row: int) -> None:
        """Set tensor[row] to zero, and give its memory back where the system can."""
        size = self.num_bytes // self.tensor.shape[0]
        start = row * size
        if hasattr(mmap, "MADV_DONTNEED") and start % mmap.PAGESIZE == 0 and size % mmap.PAGESIZE == 0:
            self._memory.madvise(mmap.MADV_DONTNEED, start, size)
        else:
            self.tensor[row] = 0
