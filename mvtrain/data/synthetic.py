"""Generated, verifiable problems with independent parts: the embedded default of the quick start.

Several people count coins. Nobody's account depends on another's, so each can be followed on a path of its own; the
conclusion adds them up. Some problems have a pair that shares an account, whose two members are followed in a nested
block. Every number while counting stays below ten, so a small model learns the steps in minutes and what is measured
is whether it splits, follows each path, and joins. The same seed gives the same problems; another seed gives others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

NAMES = ("Ann", "Ben", "Cal", "Dan", "Hal", "Jim", "Max", "Ray", "Tom", "Sam", "Bob", "Kim", "Lee", "Tim", "Rob", "Don")
LARGEST_CHANGE = 5
NESTED_SHARE = 0.25
"""Share of problems in which two people share an account."""


@dataclass(frozen=True)
class Account:
    """One person's coins: a start and a few changes; every balance lies between 0 and 9."""

    name: str
    start: int
    changes: tuple[int, ...]

    @property
    def balance(self) -> int:
        return self.start + sum(self.changes)

    def statement(self) -> str:
        return f"{self.name}: {self.start} " + " ".join(f"{change:+d}" for change in self.changes)

    def steps(self) -> str:
        lines, balance = [], self.start
        for change in self.changes:
            sign = "+" if change > 0 else "-"
            lines.append(f"{balance} {sign} {abs(change)} = {balance + change}")
            balance += change
        return f"{self.name}: " + ", ".join(lines) + "."


@dataclass(frozen=True)
class Problem:
    """A question, its answer, and the same reasoning as a sequential chain and as a trace with blocks."""

    question: str
    answer: str
    sequential: str
    parallel: str
    nested: bool

    def row(self, id: str) -> dict[str, str]:
        """With the column names of the public data sets, so that one file serves both forms."""
        return {
            "id": id,
            "question": self.question,
            "deepseek_thinking_trajectory_parallel": self.parallel,
            "deepseek_thinking_trajectory_sequential": self.sequential,
            "deepseek_attempt": rf"\boxed{{{self.answer}}}",
            "answer": self.answer,
        }


Part = tuple[Account, ...]
"""One account, or two that are shared."""


def problems(count: int, seed: int, num_parts: tuple[int, int] = (4, 5)) -> Iterator[Problem]:
    """`count` problems with between `num_parts[0]` and `num_parts[1]` independent parts each."""
    for index in range(count):
        yield _problem(random.Random(f"{seed}/{index}"), num_parts)


def _problem(source: random.Random, num_parts: tuple[int, int]) -> Problem:
    count = source.randint(*num_parts)
    names = source.sample(NAMES, count + 1)
    nested = source.random() < NESTED_SHARE
    pair = source.randrange(count) if nested else None
    parts: list[Part] = []
    for index in range(count):
        members = 2 if index == pair else 1
        parts.append(tuple(_account(source, names.pop(), 3 if members == 2 else 5) for _ in range(members)))
    total = sum(_balance(part) for part in parts)
    return Problem(_question(parts), str(total), _sequential(parts), _parallel(parts), nested)


def _account(source: random.Random, name: str, num_changes: int) -> Account:
    start = balance = source.randint(1, 9)
    changes = []
    for _ in range(num_changes):
        change = source.choice(
            [c for c in range(-LARGEST_CHANGE, LARGEST_CHANGE + 1) if c != 0 and 0 <= balance + c <= 9]
        )
        changes.append(change)
        balance += change
    return Account(name, start, tuple(changes))


def _balance(part: Part) -> int:
    return sum(account.balance for account in part)


def _title(part: Part) -> str:
    return " & ".join(account.name for account in part)


def _question(parts: list[Part]) -> str:
    lines = [" & ".join(account.statement() for account in part) for part in parts]
    return (
        "These are the coins of some people and how they change:\n" + "\n".join(lines) + "\nHow many are left in all?"
    )


def _adding_up(values: list[int]) -> str:
    steps, total = [], values[0]
    for value in values[1:]:
        steps.append(f"{total} + {value} = {total + value}")
        total += value
    return ", ".join(steps) + "."


def _shared(part: Part) -> str:
    return _title(part) + ": " + _adding_up([account.balance for account in part])


def _sequential(parts: list[Part]) -> str:
    lines = []
    for part in parts:
        lines += [account.steps() for account in part]
        if len(part) > 1:
            lines.append(_shared(part))
    return "\n".join([*lines, "In all: " + _adding_up([_balance(part) for part in parts])])


def _parallel(parts: list[Part]) -> str:
    paths = []
    for label, part in enumerate(parts, 1):
        if len(part) == 1:
            paths.append(part[0].steps())
        else:
            inner = [account.steps() for account in part]
            names = [account.name for account in part]
            paths.append(_title(part) + "\n" + _block(names, inner, _shared(part), f"{label}."))
    titles = [_title(part) for part in parts]
    total = "In all: " + _adding_up([_balance(part) for part in parts])
    return "<Think>\n" + _block(titles, paths, total, "") + "\n</Think>"


def _block(outlines: list[str], paths: list[str], conclusion: str, prefix: str) -> str:
    lines = ["<Parallel>", "<Goal>"]
    for label, outline in enumerate(outlines, 1):
        lines += ["<Outline>", f"{prefix}{label}: {outline}", "</Outline>"]
    lines.append("</Goal>")
    for label, path in enumerate(paths, 1):
        lines += ["<Path>", f"{prefix}{label}: {path}", "</Path>"]
    return "\n".join([*lines, "<Conclusion>", conclusion, "</Conclusion>", "</Parallel>"])
