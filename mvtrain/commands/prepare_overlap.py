"""Which evaluation problems stand in the rows that `mvtrain prepare` writes: runs of 13 words, row by row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mvtrain.evaluate.tasks import load_task
from mvtrain.overlap import OverlapSearch

OVERLAP = "it has an evaluation problem"


def search_for(tasks: Iterable[str], data_dir: str | None) -> OverlapSearch | None:
    """`tasks`: as in `mvtrain evaluate --task`; None where there are none.

    Raises ValueError for one that is unknown or cannot be read.
    """
    problems = [(f"{p.task}/{p.id}", p.question) for task in tasks for p in load_task(task, data_dir)]
    return OverlapSearch(problems) if problems else None


def row_text(fields: Mapping[str, Any]) -> str:
    """Every text of a row, as `mvtrain evaluate overlap` reads it."""
    return "\n".join(value for value in fields.values() if isinstance(value, str))
