"""What an evaluation reads and writes, one JSON object a line: problems, and graded samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

Kind = Literal["math", "choice"]
Mode = Literal["parallel", "unasked", "sequential"]

MODES: dict[Mode, str] = {
    "parallel": 'asked to think "in parallel"; blocks run in parallel',
    "unasked": "asked for sequential steps; blocks that the model opens all the same run in parallel",
    "sequential": "asked for sequential steps; tags are tokens like all others, nothing runs in parallel",
}


@dataclass(frozen=True)
class Problem:
    """A question with its reference answer."""

    task: str
    id: str
    question: str
    """As it is asked, without the suffix of the mode; a choice question ends with its lettered options."""
    answer: str
    """The reference: for a choice question the letter of the right option, before any shuffling A."""
    kind: Kind = "math"
    options: tuple[str, ...] = ()
    """Of a choice question, the right one first; `tasks.ask` puts them in the order of a seed."""
    meta: dict[str, str] = field(default_factory=dict)
    """What the source says of it, such as `subject` and `level`."""


@dataclass(frozen=True)
class Sample:
    """One graded response. Token counts leave out the prompt."""

    task: str
    mode: Mode
    id: str
    sample: int
    """0 to n - 1: which of the answers to the problem."""
    seed: int
    question: str
    """As it was asked, options included, without the suffix."""
    reference: str
    """In the order of options in which it was asked."""
    kind: Kind
    response: str
    answer: str | None
    """What was graded; None where the response gives no answer."""
    correct: bool | None
    """None: equality could not be told."""
    reason: str
    """Why it is not correct; empty where it is."""
    finish_reason: str
    """As in `Completion`: "stop", "length", "cancelled" or "error"."""
    well_formed: bool
    """Ended by itself, and the text is a trace without problems."""
    problems: list[str]
    num_blocks: int
    """Blocks that ran in parallel, nested ones included."""
    num_prompt: int
    num_generated: int
    critical_path: int
    num_forced: int
    num_forced_closes: int
    seconds: float
    """From admission into the batch to the last token."""
    seconds_to_first_token: float
    budget: int | None = None
    """None: the main run. Else this answer was forced when the critical path had reached `budget` tokens."""
    meta: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, Any] | None = field(default=None, repr=False)
    """What the viewer shows, see `token_details`; None where it was not kept."""

    @property
    def key(self) -> tuple[str, str, str, int, int | None]:
        """Unique in a run."""
        return self.task, self.mode, self.id, self.sample, self.budget

    @property
    def parallelism(self) -> float:
        return self.num_generated / self.critical_path if self.critical_path else 1.0

    @property
    def truncated(self) -> bool:
        return self.finish_reason == "length"


def sample_line(sample: Sample) -> str:
    """One line of JSON. Text is ASCII: a lone surrogate, which a model may write, has no other form."""
    return json.dumps(asdict(sample)) + "\n"


_NAMES = [f.name for f in fields(Sample)]


def read_samples(path: str | Path) -> Iterator[Sample]:
    """The samples of a file. A last line without a newline, from a run that was killed, is passed over.

    Raises ValueError that names file and line for anything else that is no sample.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
                yield Sample(**{name: row[name] for name in _NAMES if name in row})
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} line {number}: not a sample of `mvtrain evaluate` ({error})") from None


def token_details(completion: Any, decode: Callable[[list[int]], str]) -> dict[str, Any]:
    """What the viewer shows of a completion, as plain data. `decode` gives the text of token ids, tags included.

    `ends[i]` is how many characters of the response there are up to the end of token i (the end-of-text token adds
    none); `branches`, `token_branches`, `positions`, `logprobs` (null where forced) and `passes` are as in
    `Completion`; `nodes` are runs [start, end) of tokens counted from the start of the prompt, which see the ranges
    `sees` and themselves causally; `num_prompt` tokens come before the first token of the response.
    """
    from mvtrain.engine.detokenizer import token_ends

    return {
        "num_prompt": len(completion.prompt_ids),
        "ends": token_ends(completion.token_ids, completion.text, decode),
        "branches": [asdict(branch) for branch in completion.branches],
        "token_branches": completion.token_branches,
        "positions": completion.position_ids,
        "logprobs": [None if p is None else round(p, 4) for p in completion.logprobs],
        "passes": completion.passes,
        "nodes": [[n.start, n.end, n.position, [list(seen) for seen in n.sees]] for n in completion.layout.nodes],
        "scheme": completion.scheme,
    }
