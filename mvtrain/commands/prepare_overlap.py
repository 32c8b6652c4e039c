"""Which evaluation problems stand in the rows that `mvtrain prepare` writes: runs of 13 words, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mvtrain.evaluate.tasks import load_task
from mvtrain.overlap import Report, _Index, words

NUM_WORDS = 13
BOILERPLATE = 3
SHORTEST = 4
"""As in `mvtrain.overlap.find_overlaps`, which answers for a whole set at a time; here a row is asked about alone."""

OVERLAP = "it has an evaluation problem"


class OverlapScreen:
    """Looks at rows one by one; memory depends on the evaluation problems alone."""

    def __init__(self, tasks: Iterable[str], data_dir: str | None) -> None:
        """`tasks`: as in `mvtrain evaluate --task`. Raises ValueError for one that is unknown or cannot be read."""
        problems = [(f"{p.task}/{p.id}", p.question) for task in tasks for p in load_task(task, data_dir)]
        self.index = _Index(problems, NUM_WORDS, BOILERPLATE, (), SHORTEST)
        self.num_rows = 0

    def problems_in(self, row: str, fields: Mapping[str, Any]) -> list[str]:
        """The problems of which a row has a run of words, and a note of them for the report."""
        before = [entry.num_rows for entry in self.index.entries]
        self.index.search(row, words(row_text(fields)))
        self.num_rows += 1
        entries = zip(self.index.entries, before, strict=True)
        return [entry.id for entry, num_rows in entries if entry.num_rows > num_rows]

    def report(self) -> Report:
        """What was found in the rows so far."""
        overlaps = [found for entry in self.index.entries if (found := entry.overlap())]
        return Report(
            n=NUM_WORDS,
            num_rows=self.num_rows,
            num_problems=len(self.index.entries),
            num_boilerplate=len(self.index.boilerplate),
            overlaps=tuple(sorted(overlaps, key=lambda o: (-o.share, -o.num_words))),
            unchecked=tuple(entry.id for entry in self.index.entries if not entry.num_ngrams),
        )


def row_text(fields: Mapping[str, Any]) -> str:
    """Every text of a row, as `mvtrain evaluate overlap` reads it."""
    return "\n".join(value for value in fields.values() if isinstance(value, str))
