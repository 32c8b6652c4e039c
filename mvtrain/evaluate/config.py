"""What an evaluation is asked to do, and which part of it decides what a sample says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mvtrain.evaluate.records import MODES, Mode, Problem
from mvtrain.evaluate.tasks import ask

if TYPE_CHECKING:
    from mvtrain.engine import SamplingParams

Policy = Literal["wrong", "forced"]
POLICIES: dict[Policy, str] = {
    "wrong": "an answer that is not finished within a budget is wrong",
    "forced": "reasoning that is not finished within a budget is closed there, and the answer asked for",
}
TOTAL_PER_TOKEN = 8
"""All paths together may have so many times the tokens of the critical path."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Raises ValueError with every value that is out of range."""

    modes: tuple[Mode, ...] = ("parallel",)
    n: int = 1
    """Answers to each problem; answer k has seed `seed + k`."""
    seed: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 4096
    """Limit on the critical path of the main run."""
    max_paths: int = 64
    budgets: tuple[int, ...] = ()
    """Critical paths at which accuracy is given as well, ascending, at most `max_tokens`."""
    policy: Policy = "wrong"
    answer_tokens: int = 64
    """Room for an answer that is forced."""
    keep_tokens: bool = True
    """Write down every token's position, visibility and log-probability, for the viewer."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "modes", tuple(dict.fromkeys(self.modes)))
        object.__setattr__(self, "budgets", tuple(sorted(set(self.budgets))))
        unknown = [mode for mode in self.modes if mode not in MODES]
        rules = {
            f"modes {', '.join(self.modes) or 'none'}: choose of {', '.join(MODES)}": self.modes and not unknown,
            f"n is {self.n}: expected at least 1": self.n >= 1,
            f"n is {self.n} at temperature 0: all answers would be the same; give a temperature": self.n == 1
            or self.temperature > 0,
            f"budgets {self.budgets}: expected 1 to {self.max_tokens}, the limit of the main run": all(
                1 <= budget <= self.max_tokens for budget in self.budgets
            ),
            f"policy {self.policy!r}: choose one of {', '.join(POLICIES)}": self.policy in POLICIES,
            f"{self.answer_tokens} tokens for a forced answer: expected at least 1": self.answer_tokens >= 1,
        }
        wrong = [message for message, good in rules.items() if not good]
        if wrong:
            raise ValueError("; ".join(wrong))
        self.params(Item("", self.modes[0], Problem("", "", "", ""), 0))  # its own checks

    @property
    def max_total_tokens(self) -> int:
        return TOTAL_PER_TOKEN * self.max_tokens

    def params(self, item: Item) -> SamplingParams:
        """How one sample is generated. A forced answer shares the main run's tokens up to its budget."""
        from mvtrain.engine import SamplingParams

        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=item.budget or self.max_tokens,
            max_total_tokens=self.max_total_tokens,
            max_paths=self.max_paths,
            answer_tokens=self.answer_tokens if item.budget else 0,
            seed=self.seed + item.sample,
            parallel=item.mode != "sequential",
            ask_parallel=item.mode == "parallel",
        )

    def decisive(self) -> dict[str, Any]:
        """What two runs must share if the samples of one are to serve the other."""
        names = ("seed", "temperature", "top_p", "top_k", "max_tokens", "max_paths")
        decisive = {name: getattr(self, name) for name in names}
        return decisive | ({"answer_tokens": self.answer_tokens} if self.policy == "forced" else {})


class Item(NamedTuple):
    """One sample that is to be generated."""

    task: str
    mode: Mode
    problem: Problem
    sample: int
    budget: int | None = None

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        """That of its `Sample`."""
        return self.task, self.mode, self.problem.id, self.sample, self.budget

    def ask(self, seed: int) -> tuple[str, str]:
        """(question, reference); the options of a choice question in another order for every sample."""
        return ask(self.problem, seed + self.sample)


def items(config: EvaluationConfig, task: str, problems: list[Problem], mode: Mode) -> Iterator[Item]:
    """All samples of a task's main run in one mode, first samples first."""
    for sample in range(config.n):
        for problem in problems:
            yield Item(task, mode, problem, sample)
