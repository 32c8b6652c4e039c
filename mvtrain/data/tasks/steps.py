"""One content, two forms: steps and splits, written as a sequential chain or as a trace with blocks.

The trace is compact: blocks without the newlines of the canonical form, except where the engine writes them itself
(before and after `<Path>`, before `<Conclusion>`). A label and its colon are one word, at any depth, so the length of
outlines and openings does not depend on how deep they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What one path does. `title` is its outline; all texts begin with a space, as they follow a label or a tag."""

    label: str
    title: str
    steps: tuple[str | Split, ...]
    """The first is a text, and follows the label."""


@dataclass(frozen=True)
class Split:
    """Cases that do not depend on each other, and what follows from all of them."""

    cases: tuple[Case, ...]
    conclusion: str


Steps = Sequence[str | Split]


@dataclass(frozen=True)
class TaskProblem:
    """A question, its answer, and the reasoning in both forms."""

    question: str
    answer: str
    sequential: str
    parallel: str
    kind: str
    """What sort of problem it is, `sat` or `selective` for instance."""
    difficulty: int
    identity: str
    """The same for two problems that differ only in the order in which the question tells things."""

    @classmethod
    def of(
        cls, question: str, answer: str, steps: Steps, kind: str, difficulty: int, identity: str = ""
    ) -> TaskProblem:
        """`identity` is the question where none is given."""
        return cls(question, answer, chain(steps), trace(steps), kind, difficulty, identity or question)

    def row(self, id: str) -> dict[str, str | int]:
        """With the column names of the public data sets. The spaces in the box make the answer's words usual ones."""
        return {
            "id": id,
            "question": self.question,
            "deepseek_thinking_trajectory_parallel": self.parallel,
            "deepseek_thinking_trajectory_sequential": self.sequential,
            "deepseek_attempt": rf"\boxed{{ {self.answer} }}",
            "answer": self.answer,
            "kind": self.kind,
            "difficulty": self.difficulty,
        }


def chain(steps: Steps) -> str:
    """A line per step, per beginning of a case and per conclusion, in order, without tags and outlines."""
    return "\n".join(_lines(steps))


def _lines(steps: Steps) -> list[str]:
    lines: list[str] = []
    for step in steps:
        if isinstance(step, str):
            lines.append(step)
            continue
        for case in step.cases:
            first, *rest = _lines(case.steps)
            lines += [f"{case.label}:{first}", *rest]
        lines.append(step.conclusion)
    return lines


def trace(steps: Steps) -> str:
    return f"<Think>\n{_text(steps)}\n</Think>"


def _text(steps: Steps) -> str:
    return "\n".join(step if isinstance(step, str) else _block(step) for step in steps)


def _block(split: Split) -> str:
    outlines = "".join(f"<Outline>{case.label}:{case.title}</Outline>" for case in split.cases)
    paths = "\n".join(f"<Path>\n{case.label}:{_text(case.steps)}</Path>" for case in split.cases)
    return f"<Parallel><Goal>{outlines}</Goal>\n{paths}\n<Conclusion>{split.conclusion}</Conclusion></Parallel>"
