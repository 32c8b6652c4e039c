"""Grades of samples that are there already, made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mvtrain.evaluate.generation import gradable_text
from mvtrain.evaluate.grading_pool import GradingPool
from mvtrain.evaluate.records import Sample

_WORDS = {True: "right", False: "wrong", None: "ungradable"}


@dataclass(frozen=True)
class Change:
    """A sample that is graded otherwise than before."""

    before: Sample
    after: Sample

    def __str__(self) -> str:
        s, budget = self.after, f", forced at {self.after.budget}" if self.after.budget else ""
        return (
            f"{s.task} {s.id}, {s.mode}, sample {s.sample}{budget}: {_WORDS[self.before.correct]} -> "
            f"{_WORDS[s.correct]} (answer {s.answer!r}, reference {s.reference!r}{'; ' + s.reason if s.reason else ''})"
        )

    def as_dict(self) -> dict[str, Any]:
        task, mode, id, sample, budget = self.after.key
        return {
            "task": task, "mode": mode, "id": id, "sample": sample, "budget": budget, "before": self.before.correct,
            "after": self.after.correct, "answer": self.after.answer, "reference": self.after.reference,
        }  # fmt: skip


def _text(sample: Sample) -> str:
    return gradable_text(sample.response, sample.finish_reason, sample.budget is not None)


def regrade(samples: Sequence[Sample]) -> tuple[list[Sample], list[Change]]:
    """The samples with new grades, in order, and those whose grade is another one."""
    with GradingPool() as pool:
        grades = pool.grade_all([(_text(s), s.reference, s.kind) for s in samples])
    new = [
        replace(s, answer=g.answer, correct=g.correct, reason=g.reason) for s, g in zip(samples, grades, strict=True)
    ]
    return new, [Change(a, b) for a, b in zip(samples, new, strict=True) if a.correct is not b.correct]
