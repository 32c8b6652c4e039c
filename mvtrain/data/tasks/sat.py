"""Satisfiability by case analysis: split on the variables in order, check each case, and gather what works.

Every literal of every variable but the first needs two literals of earlier variables, joined by "and" or "or".
`c: a c; and-not-b` says that c needs both: the clauses (not-c or a) and (not-c or not-b). `c: a c; or-not-b` says that
it needs one of them: the clause (not-c or a or not-b). All needs together are a formula in conjunctive normal form.
Asked is with which values of the first variable it can be satisfied. Each half of a need has a word of its own in front
of it, `c:` and `c;`, so that either is found by one word.

A case is numbered by its choices, 1 for true and 2 for false: `1.2` takes a and not-b. Its line copies both halves of
the need of its last literal, looks either up in the choices, and joins the result with how its parent stands. Nothing
is cut short where a case has failed, so n variables make 2 + 4 + ... + 2^n cases: the chain grows with 2^n, and the
critical path by a constant for each variable. The last variable's two cases are looked at within one path, so blocks
nest n - 1 deep.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mvtrain.data.tasks.steps import Case, Split, TaskProblem

VARIABLES = "abcdefgh"
MIN_VARIABLES, MAX_VARIABLES = 2, len(VARIABLES)
ANSWERS = {(True, True): "both", (True, False): "true", (False, True): "false", (False, False): "none"}

Literal = tuple[int, bool]
"""The variable's number from 0, and the value it takes."""


@dataclass(frozen=True)
class Need:
    """What a literal needs of two earlier ones."""

    first: Literal
    both: bool
    second: Literal

    def halves(self) -> tuple[str, str]:
        return word(self.first), f"{'and' if self.both else 'or'}-{word(self.second)}"


Needs = dict[Literal, Need]


def draw(source: random.Random, num_variables: int) -> TaskProblem:
    needs: Needs = {}
    for variable in range(1, num_variables):
        for value in (True, False):
            needs[variable, value] = Need(_earlier(source, variable), source.random() < 0.5, _earlier(source, variable))
    order = list(needs)
    source.shuffle(order)
    question = (
        f"There are {num_variables} variables. What each needs: "
        + " ".join("{0}: {1} {0}; {2}".format(word(literal), *needs[literal].halves()) for literal in order)
        + f" . Which values can {VARIABLES[0]} take?"
    )
    tree = _Cases(num_variables, needs)
    root = tree.split((), "", True)
    answer = ANSWERS[tree.results["1"], tree.results["2"]]
    return TaskProblem.of(question, answer, [root], "sat", num_variables, _identity(needs))


def _identity(needs: Needs) -> str:
    """The formula in one order, whichever way round the question tells the needs and the halves of each."""
    told = {literal: sorted((word(need.first), word(need.second))) for literal, need in needs.items()}
    return repr(sorted((literal, needs[literal].both, halves) for literal, halves in told.items()))


def word(literal: Literal) -> str:
    variable, value = literal
    return VARIABLES[variable] if value else f"not-{VARIABLES[variable]}"


def _earlier(source: random.Random, variable: int) -> Literal:
    return source.randrange(variable), source.random() < 0.5


def _yes(value: bool) -> str:
    return "yes" if value else "no"


class _Cases:
    """The tree of all cases; `results` has what each of them, and all below it, came to."""

    def __init__(self, num_variables: int, needs: Needs) -> None:
        self.num_variables = num_variables
        self.needs = needs
        self.results: dict[str, bool] = {}

    def split(self, choices: tuple[bool, ...], label: str, stands: bool) -> Split:
        """The two values of the next variable, each a case of its own."""
        variable = len(choices)
        cases = []
        for place, value in enumerate((True, False), start=1):
            name = f"{label}.{place}" if label else str(place)
            cases.append(Case(name, f" {word((variable, value))}", self._case((*choices, value), name, label, stands)))
        return Split(tuple(cases), self._conclusion(label, last=variable == self.num_variables - 1))

    def _case(self, choices: tuple[bool, ...], label: str, parent: str, stands: bool) -> tuple[str | Split, ...]:
        text, stands = self._check(choices, label, parent, stands)
        if len(choices) == self.num_variables:
            self.results[label] = stands
            return (text,)
        split = self.split(choices, label, stands)
        if len(choices) < self.num_variables - 1:
            return (text, split)
        ends = [f"{case.label}:{case.steps[0]}" for case in split.cases]
        return (text, *ends, split.conclusion)

    def _check(self, choices: tuple[bool, ...], label: str, parent: str, stands: bool) -> tuple[str, bool]:
        """The line of a case after its label, and whether all holds so far."""
        literal = (len(choices) - 1, choices[-1])
        if literal not in self.needs:
            return f" {word(literal)} {label}= {_yes(stands)}", stands
        need = self.needs[literal]
        first, second = (choices[variable] == value for variable, value in (need.first, need.second))
        met = (first and second) if need.both else (first or second)
        one, other = need.halves()
        text = (
            f" {word(literal)}: {one} {_yes(first)} {word(literal)}; {other} {_yes(second)} so {_yes(met)} "
            f"{parent}= {_yes(stands)} {label}= {_yes(stands and met)}"
        )
        return text, stands and met

    def _conclusion(self, label: str, last: bool) -> str:
        """What both cases came to, and what follows for the one that they belong to."""
        names = [f"{label}.{place}" if label else str(place) for place in (1, 2)]
        found = [self.results[name] for name in names]
        mark = "=" if last else ">"
        parts = " ".join(f"{name}{mark} {_yes(result)}" for name, result in zip(names, found, strict=True))
        if not label:
            return f" {parts} so {ANSWERS[found[0], found[1]]}"
        self.results[label] = any(found)
        return f" {parts} {label}> {_yes(any(found))}"
