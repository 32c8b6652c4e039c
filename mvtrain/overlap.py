"""Which evaluation problems stand in training data: word n-grams that both have.

The evaluation side is indexed, the training side is read once, row by row, so memory depends on the former alone.
Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

LISTED_ROWS = 20
"""How many rows a hit names; all are counted."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"\\[^\W\d_]+|[{_CJK}]|[^\W_{_CJK}]+")


@dataclass(frozen=True)
class Overlap:
    """A problem that shares n-grams with training rows."""

    problem: str
    rows: tuple[str, ...]
    """The first `LISTED_ROWS` of them."""
    num_rows: int
    num_found: int
    """Different places of the problem whose n-gram stands in some row."""
    num_ngrams: int
    """Places that were looked for; boilerplate is not."""
    num_words: int
    """Of the longest run of words that stands in a row just so."""
    span: str
    """That run, as normalised words."""
    span_row: str

    @property
    def share(self) -> float:
        """Of the n-grams that were looked for. Near 1: the problem stands in the data as it is."""
        return self.num_found / self.num_ngrams


@dataclass(frozen=True)
class Report:
    n: int
    num_rows: int
    """Training rows that were read."""
    num_problems: int
    num_boilerplate: int
    """Different n-grams that were not looked for."""
    overlaps: tuple[Overlap, ...]
    """By share, the largest first."""
    unchecked: tuple[str, ...]
    """Problems in which there was nothing to look for: too short, or all boilerplate."""


def words(text: str) -> list[str]:
    r"""Lower-case words, numbers and LaTeX commands (`\frac`); everything else separates them.

    Unicode is brought to one form first (NFKC, then case folding), and every Chinese or Japanese character is a word.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def find_overlaps(
    training: Iterable[tuple[str, str]],
    problems: Iterable[tuple[str, str]],
    n: int = 13,
    *,
    boilerplate: int | None = 3,
    ignore: Iterable[str] = (),
    shortest: int = 4,
) -> Report:
    """Look for the problems' n-grams in training texts.

    Args:
        training: (name of the row, its text), read once.
        problems: (id, question). Ids must differ.
        n: words. A problem with fewer is looked for as a whole.
        boilerplate: an n-gram that this many problems or more have is a phrase of the set, as "where m and n are
            relatively prime positive integers ...", and not looked for; None looks for all.
        ignore: texts all of whose n-grams are not looked for either.
        shortest: problems with fewer words are not looked for.

    Raises ValueError for an id that is there twice, and for numbers below 1 (of `boilerplate`: below 2).
    """
    search = OverlapSearch(problems, n, boilerplate=boilerplate, ignore=ignore, shortest=shortest)
    for row, text in training:
        search.read(row, text)
    return search.report()


def describe(report: Report) -> str:
    """The report as text, a paragraph for each problem."""
    lines = [
        f"{len(report.overlaps)} of {report.num_problems} problems share {report.n}-grams with "
        f"{report.num_rows} training rows"
    ]
    for o in report.overlaps:
        more = f" and {o.num_rows - len(o.rows)} more" if o.num_rows > len(o.rows) else ""
        lines.append(f"{o.problem}: {o.share:.0%} ({o.num_found} of {o.num_ngrams}) in {', '.join(o.rows)}{more}")
        lines.append(f"    {o.num_words} words in {o.span_row}: {o.span}")
    if report.num_boilerplate:
        lines.append(f"{report.num_boilerplate} n-grams that many problems share were not looked for")
    if report.unchecked:
        lines.append(f"not checked, too short or nothing of their own: {', '.join(report.unchecked)}")
    return "\n".join(lines)


@dataclass
class _Entry:
    """A problem while rows are read."""

    id: str
    words: list[str]
    length: int
    """Words of the n-grams it is looked for by: n, or fewer if it has fewer."""
    num_ngrams: int = 0
    found: set[int] = field(default_factory=set)
    rows: list[str] = field(default_factory=list)
    num_rows: int = 0
    longest: tuple[int, int] = (0, 0)
    """(words, place of the first of them)"""
    longest_row: str = ""

    def overlap(self) -> Overlap | None:
        if not self.found:
            return None
        size, start = self.longest
        span = " ".join(self.words[start : start + size])
        counts = self.num_rows, len(self.found), self.num_ngrams
        return Overlap(self.id, tuple(self.rows), *counts, size, span, self.longest_row)


class OverlapSearch:
    """Reads training rows one by one; memory depends on the problems alone. Arguments as of `find_overlaps`.

    It keeps n-gram -> the problems that have it, and where. Words are numbers: those of no problem are skipped fast.
    """

    def __init__(
        self,
        problems: Iterable[tuple[str, str]],
        n: int = 13,
        *,
        boilerplate: int | None = 3,
        ignore: Iterable[str] = (),
        shortest: int = 4,
    ) -> None:
        if n < 1 or shortest < 1 or (boilerplate is not None and boilerplate < 2):
            raise ValueError(
                f"n {n}, shortest {shortest}, boilerplate {boilerplate}: expected at least 1, 1 and 2 (or None)"
            )
        self.n = n
        self.num_rows = 0
        self.entries = [_entry(id, text, n) for id, text in problems]
        twice = [id for id, count in Counter(entry.id for entry in self.entries).items() if count > 1]
        if twice:
            raise ValueError(f"problem {twice[0]!r} is there {Counter(e.id for e in self.entries)[twice[0]]} times")
        self.numbers: dict[str, int] = {}
        self.places: dict[tuple[int, ...], list[tuple[_Entry, int]]] = {}
        for entry in self.entries:
            if len(entry.words) >= shortest:
                self._add(entry)
        self.boilerplate = self._boilerplate(boilerplate, [words(text) for text in ignore])
        for ngram in self.boilerplate:
            for entry, _ in self.places.pop(ngram):
                entry.num_ngrams -= 1
        self.lengths = sorted({len(ngram) for ngram in self.places})

    def read(self, row: str, text: str) -> list[str]:
        """Note what a row has of every problem; returns the ids of those that it has something of."""
        self.num_rows += 1
        return self._search(row, words(text))

    def report(self) -> Report:
        """What was found in the rows so far."""
        overlaps = [found for entry in self.entries if (found := entry.overlap())]
        return Report(
            n=self.n,
            num_rows=self.num_rows,
            num_problems=len(self.entries),
            num_boilerplate=len(self.boilerplate),
            overlaps=tuple(sorted(overlaps, key=lambda o: (-o.share, -o.num_words))),
            unchecked=tuple(entry.id for entry in self.entries if not entry.num_ngrams),
        )

    def _add(self, entry: _Entry) -> None:
        ids = [self.numbers.setdefault(word, len(self.numbers)) for word in entry.words]
        entry.num_ngrams = len(ids) - entry.length + 1
        for start in range(entry.num_ngrams):
            self.places.setdefault(tuple(ids[start : start + entry.length]), []).append((entry, start))

    def _boilerplate(self, limit: int | None, ignored: Sequence[list[str]]) -> set[tuple[int, ...]]:
        common = {ngram for ngram, at in self.places.items() if limit and len({e.id for e, _ in at}) >= limit}
        for text in ignored:
            ids = [self.numbers.get(word, -1) for word in text]
            for length in {len(ngram) for ngram in self.places}:
                common |= {tuple(ids[i : i + length]) for i in range(len(ids) - length + 1)} & self.places.keys()
        return common

    def _search(self, row: str, text: Sequence[str]) -> list[str]:
        get, places = self.numbers.get, self.places
        ids = [get(word, -1) for word in text]
        hit: dict[str, _Entry] = {}
        for length in self.lengths:
            running: dict[tuple[str, int], int] = {}
            start = -1  # of the run of known words that is read
            for i, number in enumerate(ids):
                if number < 0:
                    start = i
                at = places.get(tuple(ids[i - length + 1 : i + 1])) if i - start >= length else None
                running = self._note(row, at, length, running) if at else {}
                hit.update((entry.id, entry) for entry, _ in at or ())
        for entry in hit.values():
            entry.num_rows += 1
            if len(entry.rows) < LISTED_ROWS:
                entry.rows.append(row)
        return list(hit)

    @staticmethod
    def _note(
        row: str, at: Sequence[tuple[_Entry, int]], length: int, before: dict[tuple[str, int], int]
    ) -> dict[tuple[str, int], int]:
        """Mark an n-gram as found. `before`: (problem, place) of the one a word earlier -> words of its run."""
        now = {}
        for entry, place in at:
            entry.found.add(place)
            size = before.get((entry.id, place - 1), length - 1) + 1
            now[entry.id, place] = size
            if size > entry.longest[0]:
                entry.longest, entry.longest_row = (size, place + length - size), row
        return now


def _entry(id: str, text: str, n: int) -> _Entry:
    found = words(text)
    return _Entry(id, found, min(n, len(found)))
