# ruff: noqa: E501 (texts)
r"""Chains of thought written for the tests, each with its structure, so that a competent model can be played.

`⟦as it stands|rewritten⟧` marks what a rewritten path says otherwise. A chain is a list of steps; `S` is a step in one
piece, `M` one with substeps, `P` steps that run in parallel: paths, each a list of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MARK = re.compile(r"⟦(.*?)\|(.*?)⟧", re.DOTALL)


@dataclass(frozen=True)
class S:
    title: str
    text: str


@dataclass(frozen=True)
class P:
    paths: tuple[tuple[S | M, ...], ...]
    outlines: tuple[str, ...]
    conclusion: str


@dataclass(frozen=True)
class M:
    title: str
    parts: tuple[S | P, ...]


@dataclass(frozen=True)
class Chain:
    id: str
    kind: str
    question: str
    answer: str
    parts: tuple[S | M | P, ...]
    reference: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(original(leaf.text) for leaf in leaves(self.parts))

    def row(self) -> dict[str, str]:
        return {
            "id": self.id, "question": self.question, "deepseek_thinking_trajectory": self.text,
            "deepseek_attempt": rf"\boxed{{{self.answer}}}", "answer": self.reference or self.answer,
        }  # fmt: skip

    @property
    def is_parallel(self) -> bool:
        return any(True for _ in blocks(self.parts))


def original(text: str) -> str:
    return _MARK.sub(r"\1", text)


def rewritten(text: str) -> str:
    return _MARK.sub(r"\2", text)


def leaves(parts: Sequence[S | M | P]) -> Iterator[S]:
    for part in parts:
        if isinstance(part, S):
            yield part
        elif isinstance(part, M):
            yield from leaves(part.parts)
        else:
            for path in part.paths:
                yield from leaves(path)


def blocks(parts: Sequence[S | M | P]) -> Iterator[P]:
    for part in parts:
        if isinstance(part, P):
            yield part
            for path in part.paths:
                yield from blocks(path)
        elif isinstance(part, M):
            yield from blocks(part.parts)


def steps(parts: Sequence[S | M | P]) -> Iterator[S | M]:
    """All steps of a level, those that run in parallel one after another."""
    for part in parts:
        if isinstance(part, P):
            for path in part.paths:
                yield from path
        else:
            yield part


ABSOLUTE = Chain(
    "absolute", "cases", "For which real x is |x - 3| = 2x?", "1",
    (
        S("plan", "The absolute value asks for a distinction of two cases, by the sign of x - 3."),
        P(
            (
                (S("x at least 3", "Case x >= 3: then |x - 3| = x - 3, so x - 3 = 2x.\nThis gives x = -3, which is not >= 3, so nothing comes of it."),),
                (S("x below 3", "⟦Similarly, for|For⟧ x < 3: then |x - 3| = 3 - x, so 3 - x = 2x.\nThis gives 3 = 3x, hence x = 1, and 1 < 3 holds."),),
            ),
            ("Solve the equation for x >= 3", "Solve the equation for x < 3"),
            "The case x >= 3 has no solution; the case x < 3 gives x = 1.",
        ),
        S("answer", r"So the only solution is x = 1, that is \boxed{1}."),
    ),
)  # fmt: skip

PARITY = Chain(
    "parity", "cases", "Show whether n^2 + n is even for every whole number n, and give its remainder modulo 2.", "0",
    (
        S("plan", "Every whole number is even or odd, and these are treated one by one."),
        P(
            (
                (S("even", "If n is even, write n = 2k.\nThen n^2 + n = 4k^2 + 2k = 2(2k^2 + k), which is even."),),
                (S("odd", "If n is odd, write n = 2k + 1.\n⟦As in the previous case we expand: n^2|Expand: n^2⟧ + n = 4k^2 + 4k + 1 + 2k + 1 = 2(2k^2 + 3k + 1), which is even."),),
            ),
            ("Treat even n", "Treat odd n"),
            "n^2 + n is even if n is even, and even if n is odd.",
        ),
        S("answer", r"In both cases the remainder is 0: \boxed{0}."),
    ),
)  # fmt: skip

AREAS = Chain(
    "areas", "sub-problems", "A field is made of a rectangle of 12 by 5 metres, a triangle with base 8 and height 6, and a square of side 7. What is its area?", "133",
    (
        S("plan", "The area is the sum of three areas, which have nothing to do with each other."),
        P(
            (
                (S("rectangle", "The rectangle has sides 12 and 5.\nIts area is 12 times 5, that is 12 * 5 = 60."),),
                (S("triangle", "The triangle has base 8 and height 6.\n⟦In the same way, its|Its⟧ area is half of 8 * 6 = 48, so it is 24."),),
                (S("square", "The square has side 7.\nIts area is 7 * 7 = 49."),),
            ),
            ("Area of the rectangle", "Area of the triangle", "Area of the square"),
            "The rectangle has 60, the triangle 24 and the square 49 square metres.",
        ),
        S("sum", r"Together 60 + 24 + 49 = 133, so the area is \boxed{133}."),
    ),
)  # fmt: skip

PRICES = Chain(
    "prices", "sub-problems", r"Three pens cost \$4.50 and five books cost \$60. How much are seven pens and two books?", "34.5",
    (
        S("reading", "Two unit prices are needed."),
        P(
            (
                (S("pen", "Three pens cost 4.50, so one pen costs 4.50 / 3 = 1.50.\nSeven pens cost 7 * 1.50 = 10.50."),),
                (S("book", "Five books cost 60, so one book costs 60 / 5 = 12.\nTwo books cost 2 * 12 = 24."),),
            ),
            ("Find the price of seven pens", "Find the price of two books"),
            "Seven pens are 10.50 and two books are 24.",
        ),
        S("sum", r"In all 10.50 + 24 = 34.50, so \boxed{34.5}."),
    ),
)  # fmt: skip

METHODS = Chain(
    "methods", "alternatives", "What is the sum of the odd numbers from 1 to 99?", "2500",
    (
        S("plan", "I will find it in two ways, to be sure."),
        P(
            (
                (S("pairs", "Pair the first with the last: 1 + 99 = 100, 3 + 97 = 100, and so on.\nThere are 50 numbers, so 25 pairs, and 25 * 100 = 2500."),),
                (S("squares", "⟦Alternatively, the|The⟧ sum of the first n odd numbers is n^2.\nHere n = 50, and 50^2 = 2500."),),
            ),
            ("Add the numbers in pairs", "Use the formula for the first n odd numbers"),
            "Pairs give 2500, and the formula gives 2500 as well.",
        ),
        S("answer", r"Both agree, so the sum is \boxed{2500}."),
    ),
)  # fmt: skip

CANDIDATES = Chain(
    "candidates", "alternatives", "Which of 91, 97 and 119 is prime?", "97",
    (
        S("plan", "None of them is even or ends in 5. I try small primes for each."),
        P(
            (
                (S("91", "For 91: 91 / 7 = 13, so 91 = 7 * 13 and it is not prime."),),
                (S("97", "For 97: it is no multiple of 3, 5 or 7, and 11 * 11 = 121 is larger than 97, so it is prime."),),
                (S("119", "For 119: ⟦as with the first candidate 7 divides it|7 divides it⟧, since 119 / 7 = 17. So it is not prime."),),
            ),
            ("Test 91", "Test 97", "Test 119"),
            "91 and 119 are multiples of 7; 97 is prime.",
        ),
        S("answer", r"Only 97 is prime: \boxed{97}."),
    ),
)  # fmt: skip

EUCLID = Chain(
    "euclid", "nothing parallel", "What is the greatest common divisor of 252 and 105?", "21",
    (
        S("first division", "Divide: 252 = 2 * 105 + 42."),
        S("second division", "Go on with 105 and 42: 105 = 2 * 42 + 21."),
        S("third division", "Go on with 42 and 21: 42 = 2 * 21 + 0."),
        S("answer", r"The last remainder that is not zero is 21, so \boxed{21}."),
    ),
)  # fmt: skip

DOUBLING = Chain(
    "doubling", "nothing parallel", "A number is doubled, then 3 is added, four times in a row. It starts as 1. What is it then?", "61",
    (
        S("first", "Start with 1: doubled 2, with 3 it is 5."),
        S("second", "From 5: doubled 10, with 3 it is 13."),
        S("third", "From 13: doubled 26, with 3 it is 29."),
        S("fourth", r"From 29: doubled 58, with 3 it is 61, so \boxed{61}."),
    ),
)  # fmt: skip

NESTED = Chain(
    "nested", "nested", "How many whole solutions has |x| + |y| = 2?", "8",
    (
        S("plan", "Look at y = 0 and at y different from 0."),
        P(
            (
                (S("y zero", "If y = 0, then |x| = 2, so x = 2 or x = -2.\nThat is 2 solutions."),),
                (
                    M(
                        "y not zero",
                        (
                            S("its plan", "If y is not 0, then |y| = 1 or |y| = 2."),
                            P(
                                (
                                    (S("|y| is 1", "For |y| = 1: |x| = 1, so x = 1 or x = -1, and y = 1 or y = -1.\nThat is 2 * 2 = 4 solutions."),),
                                    (S("|y| is 2", "⟦Likewise, for|For⟧ |y| = 2: |x| = 0, so x = 0, and y = 2 or y = -2.\nThat is 2 solutions."),),
                                ),
                                ("Count solutions with |y| = 1", "Count solutions with |y| = 2"),
                                "There are 4 solutions with |y| = 1 and 2 with |y| = 2.",
                            ),
                            S("its sum", "Together that is 4 + 2 = 6 solutions."),
                        ),
                    ),
                ),
            ),
            ("Count solutions with y = 0", "Count solutions with y not 0"),
            "There are 2 solutions with y = 0 and 6 with y not 0.",
        ),
        S("answer", r"In all 2 + 6 = 8 solutions: \boxed{8}."),
    ),
)  # fmt: skip

TWO_BLOCKS = Chain(
    "two-blocks", "sub-problems", r"Let f(x) = x^2 + 1 and g(x) = 3x. Find f(g(2)) + g(f(2)).", "52",
    (
        S("reading", "Inner values are needed first."),
        P(
            (
                (S("g(2)", "g(2) = 3 * 2 = 6."),),
                (S("f(2)", "f(2) = 2^2 + 1 = 5."),),
            ),
            ("Find g(2)", "Find f(2)"),
            "g(2) = 6 and f(2) = 5.",
        ),
        S("between", "Now the outer functions are applied to 6 and to 5."),
        P(
            (
                (S("f(6)", "f(6) = 6^2 + 1 = 37."),),
                (S("g(5)", "⟦Next, g(5)|g(5)⟧ = 3 * 5 = 15."),),
            ),
            ("Find f(6)", "Find g(5)"),
            "f(6) = 37 and g(5) = 15.",
        ),
        S("answer", r"The sum is 37 + 15 = 52, so \boxed{52}."),
    ),
)  # fmt: skip

SUBSTEPS = Chain(
    "substeps", "sub-problems", r"In a triangle the angles at A and B are $\frac{1}{3}$ and $\frac{1}{4}$ of $180^\circ$. How large is the angle at C?", "75",
    (
        S("reading", r"The sum of the angles is $180^\circ$."),
        M(
            "both angles",
            (
                P(
                    (
                        (S("A", r"The angle at A is $\frac{1}{3} \cdot 180^\circ = 60^\circ$."),),
                        (S("B", r"⟦The same thing at B: it|The angle at B⟧ is $\frac{1}{4} \cdot 180^\circ = 45^\circ$."),),
                    ),
                    ("Find the angle at A", "Find the angle at B"),
                    r"The angle at A is $60^\circ$, the one at B $45^\circ$.",
                ),
                S("their sum", r"Together they are $60^\circ + 45^\circ = 105^\circ$."),
            ),
        ),
        S("answer", r"So the angle at C is $180^\circ - 105^\circ = 75^\circ$, that is \boxed{75}."),
    ),
)  # fmt: skip

LONG_PATHS = Chain(
    "long-paths", "sub-problems", "Train P leaves at 9:00 at 80 km/h and train Q at 10:00 at 100 km/h in the opposite direction. How far apart are they at 12:00?", "440",
    (
        S("plan", "The distances that both have covered at 12:00 add up, as they drive apart."),
        P(
            (
                (
                    S("time of P", "Train P drives from 9:00 to 12:00, which is 3 hours."),
                    S("way of P", "At 80 km/h it covers 3 * 80 = 240 km."),
                ),
                (
                    S("time of Q", "Train Q drives from 10:00 to 12:00, which is 2 hours."),
                    S("way of Q", "At 100 km/h it covers 2 * 100 = 200 km."),
                ),
            ),
            ("Distance of train P at 12:00", "Distance of train Q at 12:00"),
            "Train P has covered 240 km and train Q 200 km.",
        ),
        S("answer", r"They are 240 + 200 = 440 km apart: \boxed{440}."),
    ),
)  # fmt: skip

WRONG_ANSWER = Chain(
    "wrong-answer", "nothing parallel", "What is 17 * 3?", "41",
    (S("product", r"17 * 3 is 41, so \boxed{41}."),), reference="51",
)  # fmt: skip

CHAINS = (
    ABSOLUTE, PARITY, AREAS, PRICES, METHODS, CANDIDATES, EUCLID, DOUBLING, NESTED, TWO_BLOCKS, SUBSTEPS, LONG_PATHS,
    WRONG_ANSWER,
)  # fmt: skip
BY_QUESTION = {chain.question: chain for chain in CHAINS}
