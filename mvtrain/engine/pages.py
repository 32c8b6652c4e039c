"""Bookkeeping of the KV cache in plain numbers: which row has how many slots, on which pages, and what is free.

A row belongs to a request, or to a prompt that several requests share. A page belongs to one row; a row that shares a
prompt also sees the pages of that prompt's row, before its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE_SIZE = 32
"""Slots of a page. A row wastes half a page on average."""


@dataclass
class _Row:
    pages: list[int] = field(default_factory=list)
    used: int = 0
    prefix: int | None = None
    num_users: int = 0
    """Rows whose prefix this row is."""


class Pages:
    """Gives out pages to rows and takes them back.

    Args:
        num_pages: how many there are. None: as many as are asked for.
    """

    def __init__(self, num_pages: int | None, page_size: int = PAGE_SIZE) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.rows: dict[int, _Row] = {}
        self.num_used = 0
        self.peak = 0
        """The most pages that were in use at a time."""
        self._returned: list[int] = []
        self._next = 0

    @property
    def num_free(self) -> float:
        return float("inf") if self.num_pages is None else self.num_pages - self.num_used

    @property
    def capacity(self) -> float:
        """Slots, in use or free."""
        return float("inf") if self.num_pages is None else self.num_pages * self.page_size

    def num_needed(self, num_slots: int) -> int:
        """Pages that hold `num_slots` slots."""
        return -(-num_slots // self.page_size)

    def open(self, prefix: int | None = None) -> int:
        """A new row, the lowest that is free; it sees all of row `prefix`."""
        row = next(row for row in range(len(self.rows) + 1) if row not in self.rows)
        self.rows[row] = _Row(prefix=prefix)
        if prefix is not None:
            self.rows[prefix].num_users += 1
        return row

    def can_reserve(self, row: int, count: int) -> bool:
        return self._num_more(row, count) <= self.num_free

    def reserve(self, row: int, count: int) -> range:
        """The next `count` slots of `row`, from now on in use."""
        assert self.can_reserve(row, count), "asked for more than is free"
        state = self.rows[row]
        for _ in range(self._num_more(row, count)):
            state.pages.append(self._take())
        state.used += count
        return range(state.used - count, state.used)

    def close(self, row: int) -> None:
        """Give the row and its pages back."""
        state = self.rows.pop(row)
        assert state.num_users == 0, f"row {row} is the prefix of {state.num_users} rows"
        self._returned += state.pages
        self.num_used -= len(state.pages)
        if state.prefix is not None:
            self.rows[state.prefix].num_users -= 1

    def used(self, row: int) -> int:
        """Slots in use, those of the prefix not counted."""
        return self.rows[row].used

    def prefix_of(self, row: int) -> int | None:
        return self.rows[row].prefix

    def visible_pages(self, row: int) -> list[int]:
        """The pages of the row's prefix and its own."""
        state = self.rows[row]
        return state.pages if state.prefix is None else self.rows[state.prefix].pages + state.pages

    def check_integrity(self) -> None:
        """Assert that no page is lost, and none given out twice. For tests."""
        held = [page for state in self.rows.values() for page in state.pages]
        assert len(held) == self.num_used and sorted(held + self._returned) == list(range(self._next))
        assert self.num_pages is None or self.num_used <= self.num_pages
        for row, state in self.rows.items():
            assert len(state.pages) == self.num_needed(state.used)
            assert state.num_users == sum(other.prefix == row for other in self.rows.values())

    def _num_more(self, row: int, count: int) -> int:
        state = self.rows[row]
        return self.num_needed(state.used + count) - len(state.pages)

    def _take(self) -> int:
        self.num_used += 1
        self.peak = max(self.peak, self.num_used)
        if self._returned:
            return self._returned.pop()
        self._next += 1
        return self._next - 1
