"""Items in, graded samples out, as they are finished."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mvtrain.evaluate.config import EvaluationConfig, Item
from mvtrain.evaluate.grading import Grade
from mvtrain.evaluate.records import Mode, Problem, Sample, token_details

if TYPE_CHECKING:
    from mvtrain.engine import Completion, Engine
    from mvtrain.evaluate.grading_pool import GradingPool


@dataclass(frozen=True)
class Timing:
    """One batched run: what it generated, and how long that took."""

    num_samples: int = 0
    num_generated: int = 0
    seconds: float = 0.0


@dataclass
class _Waiting:
    """A completion whose grade is not there yet."""

    item: Item
    question: str
    reference: str
    completion: Completion
    grade: Future[Grade]


def generate_samples(
    engine: Engine,
    items: Sequence[Item],
    config: EvaluationConfig,
    pool: GradingPool,
    take: Callable[[Sample], Any],
    progress: Callable[[int, int, int], Any] | None = None,
) -> Timing:
    """Answer all items in one batched run, and give each sample to `take` when it is graded.

    Args:
        progress: called after every step with (finished, all, tokens so far).

    Raises:
        ValueError: a question is too long, or holds a tag; it says which.
    """
    asked = [item.ask(config.seed) for item in items]
    params = [config.params(item) for item in items]
    prompts = [_encode(engine, item, text, p) for item, (text, _), p in zip(items, asked, params, strict=True)]
    decode = engine.markup.decode if config.keep_tokens else None
    waiting: deque[_Waiting] = deque()
    num_generated, start = 0, time.perf_counter()
    try:
        for index, completion in engine.as_completed(prompts, params, progress):
            item, (question, reference) = items[index], asked[index]
            text = gradable_text(completion.text, completion.finish_reason, completion.answer_forced)
            grade = pool.submit(text, reference, item.problem.kind)
            waiting.append(_Waiting(item, question, reference, completion, grade))
            num_generated += completion.num_generated
            while waiting and waiting[0].grade.done():
                take(_sample(waiting.popleft(), config, decode))
    finally:  # an interruption must not lose what is generated
        seconds = time.perf_counter() - start
        for graded in waiting:
            take(_sample(graded, config, decode))
    return Timing(len(items), num_generated, seconds)


def gradable_text(response: str, finish_reason: str, forced: bool) -> str:
    """What the grader gets. Of a response that was cut off before its reasoning ended that is nothing.

    The grader sees an open `<Think>` by itself, but not that text without tags would have gone on.
    """
    is_cut = finish_reason != "stop" and not forced
    return "" if is_cut and "</think>" not in response.lower() else response


def check_prompts(engine: Engine, config: EvaluationConfig, task: str, mode: Mode, problems: Sequence[Problem]) -> None:
    """Raises ValueError for a question that is too long or holds a tag; it says which."""
    for problem in problems:
        item = Item(task, mode, problem, 0)
        _encode(engine, item, item.ask(config.seed)[0], config.params(item))


def _encode(engine: Engine, item: Item, question: str, params: Any) -> list[int]:
    try:
        return engine.encode(question, params)
    except ValueError as error:
        raise ValueError(f"task {item.task}, problem {item.problem.id}: {error}") from None


def _sample(graded: _Waiting, config: EvaluationConfig, decode: Callable[[list[int]], str] | None) -> Sample:
    item, completion, grade = graded.item, graded.completion, graded.grade.result()
    return Sample(
        task=item.task,
        mode=item.mode,
        id=item.problem.id,
        sample=item.sample,
        seed=config.seed + item.sample,
        question=graded.question,
        reference=graded.reference,
        kind=item.problem.kind,
        response=completion.text,
        answer=grade.answer,
        correct=grade.correct,
        reason=grade.reason,
        finish_reason=completion.finish_reason,
        well_formed=completion.finish_reason == "stop" and completion.trace is not None and not completion.problems,
        problems=list(completion.problems),
        num_blocks=len({branch.lineage[:-1] for branch in completion.branches if branch.lineage}),
        num_prompt=len(completion.prompt_ids),
        num_generated=completion.num_generated,
        critical_path=completion.critical_path,
        num_forced=completion.num_forced,
        num_forced_closes=completion.num_forced_closes,
        seconds=completion.seconds,
        seconds_to_first_token=completion.seconds_to_first_token,
        budget=item.budget,
        meta=item.problem.meta,
        tokens=token_details(completion, decode) if decode else None,
    )


def time_alone(
    engine: Engine, config: EvaluationConfig, task: str, mode: Mode, problems: Sequence[Problem]
) -> list[float]:
    """Seconds for each problem when it is the only request."""
    seconds = []
    for problem in problems:
        item = Item(task, mode, problem, 0)
        prompt = _encode(engine, item, item.ask(config.seed)[0], config.params(item))
        start = time.perf_counter()
        engine.generate([prompt], config.params(item))
        seconds.append(time.perf_counter() - start)
    return seconds
