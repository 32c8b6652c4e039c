"""Run the engine over problems with known answers and sum up what it did."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mvtrain.evaluate.grading import grade

if TYPE_CHECKING:
    from mvtrain.engine import Completion, Engine, SamplingParams


@dataclass(frozen=True)
class BenchmarkProblem:
    """A question with its reference answer. `id` says which row of which file it is."""

    id: str
    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One graded response."""

    id: str
    question: str
    response: str
    answer: str | None
    reference: str
    correct: bool | None
    well_formed: bool
    num_blocks: int
    finish_reason: str
    num_generated: int
    critical_path: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What the samples of one run come to. Rates are between 0 and 1; tokens and seconds are means per problem."""

    num_problems: int
    accuracy: float
    ungradable: float
    well_formed: float
    with_blocks: float
    truncated: float
    parallelism: float
    """Ratio of sums: all generated tokens / all tokens on critical paths. The prompt counts in neither."""
    generated_tokens: float
    critical_path_tokens: float
    seconds_per_problem: float
    """Wall time of the batched run / problems."""


def read_problems(path: str | Path, limit: int | None = None) -> list[BenchmarkProblem]:
    """Read JSONL rows with `question` or `problem`, and `answer`.

    Raises:
        ValueError: names the file, the line and what is missing; or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} problems: expected at least 1")
    problems = []
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(problems) >= limit:
                break
            if line.strip():
                problems.append(_read_problem(path, number, line))
    if not problems:
        raise ValueError(f"{path}: no problem in it; expected one JSON object with `question` and `answer` a line")
    return problems


def _read_problem(path: str | Path, number: int, line: str) -> BenchmarkProblem:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} line {number}: not JSON: {error}") from None
    question = row.get("question") or row.get("problem") if isinstance(row, dict) else None
    if not isinstance(question, str) or row.get("answer") is None:
        raise ValueError(f"{path} line {number}: expected the fields `question` (or `problem`) and `answer`")
    answer = str(row["answer"]).rsplit("####", 1)[-1].strip()
    return BenchmarkProblem(str(row.get("id", number)), question, answer)


def run_benchmark(
    engine: Engine,
    problems: Sequence[BenchmarkProblem],
    params: SamplingParams,
    progress: Callable[[int, int, int], None] | None = None,
) -> tuple[list[Sample], float]:
    """Answer every problem in one batched run. Returns the samples in order, and the wall time in seconds."""
    start = time.perf_counter()
    completions = engine.generate([problem.question for problem in problems], params, progress=progress)
    seconds = time.perf_counter() - start
    return [_sample(p, c) for p, c in zip(problems, completions, strict=True)], seconds


def time_alone(engine: Engine, problems: Sequence[BenchmarkProblem], params: SamplingParams) -> list[float]:
    """Seconds for each problem when it is the only request."""
    seconds = []
    for problem in problems:
        start = time.perf_counter()
        engine.generate([problem.question], params)
        seconds.append(time.perf_counter() - start)
    return seconds


def _sample(problem: BenchmarkProblem, completion: Completion) -> Sample:
    graded = grade(completion.text, problem.answer)
    return Sample(
        id=problem.id,
        question=problem.question,
        response=completion.text,
        answer=graded.answer,
        reference=problem.answer,
        correct=graded.correct,
        well_formed=completion.finish_reason == "stop" and completion.trace is not None and not completion.problems,
        num_blocks=completion.text.count("<Parallel>"),
        finish_reason=completion.finish_reason,
        num_generated=completion.num_generated,
        critical_path=completion.critical_path,
        problems=tuple(str(problem) for problem in completion.problems),
    )


def summarise(samples: Sequence[Sample], seconds: float) -> Summary:
    """Sum up the samples of one batched run that took `seconds`."""

    def share(values: Iterable[bool]) -> float:
        return sum(values) / len(samples)

    generated = sum(s.num_generated for s in samples)
    critical = sum(s.critical_path for s in samples)
    return Summary(
        num_problems=len(samples),
        accuracy=share(s.correct is True for s in samples),
        ungradable=share(s.correct is None for s in samples),
        well_formed=share(s.well_formed for s in samples),
        with_blocks=share(s.num_blocks > 0 for s in samples),
        truncated=share(s.finish_reason == "length" for s in samples),
        parallelism=generated / max(critical, 1),
        generated_tokens=generated / len(samples),
        critical_path_tokens=critical / len(samples),
        seconds_per_problem=seconds / len(samples),
    )


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One JSON object per sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples), encoding="utf-8")
