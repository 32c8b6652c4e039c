"""Generated, verifiable problems with independent parts: the embedded default of the quick start.

Several travellers follow the roads of one map until each comes home. Nobody's way depends on another's, so each can be
followed on a path of its own, and the conclusion gathers the last stops. In half of the problems two of them share a
number, and are followed in a nested block. Every step copies from what stands in view ("A to B" in the question, "from
A to B" on the way), which is what a small language model does well: it learns the task in minutes, and what is measured
is whether it splits, follows each path, and joins. The same seed gives the same problems; another seed gives others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

NAMES = ("Ann", "Ben", "Cal", "Dan", "Hal", "Jim", "Max", "Ray", "Tom", "Sam", "Bob", "Kim", "Lee", "Tim", "Rob", "Don")
PLACES = (
    "river stone tiger apple bread cloud eagle flame grape horse island jacket kitten lemon mirror needle ocean "
    "paper queen rabbit silver table valley window zebra anchor basket candle desert engine forest garden hammer "
    "insect jungle kettle ladder market orange pencil ribbon saddle temple umbrella violet wagon bridge castle doctor "
    "flower guitar harbor lantern meadow orchard palace rocket shadow tunnel village winter barrel button camel dragon "
    "feather glove honey iron jewel king lake moon nest owl pearl rain snow tower wolf"
).split()
HOME = "home"
NESTED_SHARE = 0.5
"""Share of problems in which one part is a pair of travellers: enough to learn nested blocks from few examples."""
NUM_PARTS = 5
NUM_STOPS = (4, 5)
NUM_STOPS_OF_A_PAIR = (2, 2)


@dataclass(frozen=True)
class Traveller:
    """A name and the places on the way, the last of which leads home."""

    name: str
    stops: tuple[str, ...]

    @property
    def last_stop(self) -> str:
        return self.stops[-1]

    def roads(self) -> list[tuple[str, str]]:
        return list(zip(self.stops, (*self.stops[1:], HOME), strict=True))

    def way(self) -> str:
        """The reasoning: every road looked up in turn."""
        steps = " ".join(f"Take the road from {start} to {end}." for start, end in self.roads())
        return f"{self.start()}. {steps} So {self.result()}."

    def start(self) -> str:
        return f"{self.name} starts at {self.stops[0]}"

    def result(self) -> str:
        return f"{self.name}: {self.last_stop}"


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


Part = tuple[Traveller, ...]
"""One traveller, or a pair."""


def problems(count: int, seed: int) -> Iterator[Problem]:
    """`count` problems. Problem k of a seed does not depend on `count`."""
    for index in range(count):
        yield _problem(random.Random(f"{seed}/{index}"))


def _problem(source: random.Random) -> Problem:
    nested = source.random() < NESTED_SHARE
    pair = source.randrange(NUM_PARTS) if nested else None
    names, places = iter(source.sample(NAMES, NUM_PARTS + nested)), iter(source.sample(PLACES, len(PLACES)))
    parts: list[Part] = []
    for index in range(NUM_PARTS):
        members, num_stops = (2, NUM_STOPS_OF_A_PAIR) if index == pair else (1, NUM_STOPS)
        part = [
            Traveller(next(names), tuple(next(places) for _ in range(source.randint(*num_stops))))
            for _ in range(members)
        ]
        parts.append(tuple(part))
    answer = _results(parts)
    return Problem(_question(parts, source), answer, _sequential(parts), _parallel(parts), nested)


def _title(part: Part) -> str:
    return " & ".join(traveller.name for traveller in part)


def _result(part: Part) -> str:
    return " & ".join(traveller.result() for traveller in part)


def _numbered(texts: Iterable[str]) -> str:
    return ", ".join(f"{number} {text}" for number, text in enumerate(texts, 1))


def _results(parts: Sequence[Part]) -> str:
    return _numbered(_result(part) for part in parts)


def _everyone(parts: Sequence[Part]) -> list[Traveller]:
    return [traveller for part in parts for traveller in part]


def _question(parts: list[Part], source: random.Random) -> str:
    roads = [road for traveller in _everyone(parts) for road in traveller.roads()]
    source.shuffle(roads)
    starts = ", ".join(traveller.start() for traveller in _everyone(parts))
    return (
        "Roads: " + ", ".join(f"{start} to {end}" for start, end in roads) + ".\n"
        f"Travellers: {_numbered(_title(part) for part in parts)}.\n{starts}.\n"
        "Where does each stop last before home?"
    )


def _sequential(parts: list[Part]) -> str:
    """What the trace says, in order, without tags and outlines."""
    lines = []
    for part in parts:
        ways = [traveller.way() for traveller in part]
        lines += ways if len(part) == 1 else [_title(part), *ways, _result(part)]
    return "\n".join([*lines, _results(parts)])


def _parallel(parts: list[Part]) -> str:
    paths = []
    for label, part in enumerate(parts, 1):
        if len(part) == 1:
            paths.append(part[0].way())
        else:
            names, ways = [traveller.name for traveller in part], [traveller.way() for traveller in part]
            paths.append(_title(part) + "\n" + _block(names, ways, _result(part), f"{label}."))
    block = _block([_title(part) for part in parts], paths, _results(parts), "")
    return f"<Think>\n{block}\n</Think>"


def _block(outlines: list[str], paths: list[str], conclusion: str, prefix: str) -> str:
    lines = ["<Parallel>", "<Goal>"]
    for label, outline in enumerate(outlines, 1):
        lines += ["<Outline>", f"{prefix}{label}: {outline}", "</Outline>"]
    lines.append("</Goal>")
    for label, path in enumerate(paths, 1):
        lines += ["<Path>", f"{prefix}{label}: {path}", "</Path>"]
    return "\n".join([*lines, "<Conclusion>", conclusion, "</Conclusion>", "</Parallel>"])
