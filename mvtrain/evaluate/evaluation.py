"""A whole evaluation: every task in every mode, answers forced at budgets, results and report. Goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvtrain.evaluate.budgets import needs_forcing
from mvtrain.evaluate.config import EvaluationConfig, Item, items
from mvtrain.evaluate.generation import Timing, check_prompts, generate_samples
from mvtrain.evaluate.grading_pool import GradingPool
from mvtrain.evaluate.header import continued, now, run_header
from mvtrain.evaluate.progress import progress_of
from mvtrain.evaluate.ranks import EvaluationRanks
from mvtrain.evaluate.records import Mode, Problem, Sample
from mvtrain.evaluate.results import make_results
from mvtrain.evaluate.run_folder import RESULTS_NAME, RunFolder
from mvtrain.folders import write_whole

if TYPE_CHECKING:
    from mvtrain.engine import Engine

Tasks = Mapping[str, tuple[str, Sequence[Problem]]]
"""Name -> source and problems."""


class Evaluation:
    """One run on this rank; every rank makes one.

    Args:
        tasks: name -> source and problems.
        folder: see `RunFolder`; a run that is in it goes on, with whatever tasks, modes, budgets and samples are new.
        verified: what the check of the engine found, for the header.
        show: tell the progress on standard error.

    Raises:
        ValueError: the folder holds samples that this run would not have given.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoint: str,
        tasks: Tasks,
        config: EvaluationConfig,
        folder: str,
        ranks: EvaluationRanks | None = None,
        *,
        verified: Mapping[str, Any] | str = "skipped",
        overwrite: bool = False,
        show: bool = True,
    ) -> None:
        self.engine, self.tasks, self.config, self.show = engine, tasks, config, show
        self.ranks = ranks or EvaluationRanks()
        self.folder = RunFolder(folder, self.ranks.rank, self.ranks.world_size)
        self.header = run_header(checkpoint, engine, config, tasks, verified, self.ranks.world_size)
        for task, mode, problems in self._groups():
            check_prompts(engine, config, task, mode, problems)  # before anything is written or generated
        self.ranks.first_does(lambda: self._prepare(overwrite))
        self.done: dict[tuple, Sample] = {}
        try:
            self._read_done()
        except ValueError:
            self.close()
            raise

    def _prepare(self, overwrite: bool) -> None:
        self.folder.prepare(self.header["identity"], overwrite)
        self.header = continued(self.folder.header(), self.header)
        self.folder.write_header(self.header)

    def _read_done(self) -> None:
        """What all ranks have. None goes on before all have read: they have to share what is missing alike."""
        self.done = {sample.key: sample for sample in self.folder.samples(with_tokens=False)}
        for task, (source, problems) in self.tasks.items():
            asked = {problem.id: problem for problem in problems}
            for sample in self.done.values():
                if sample.task == task and sample.id in asked:
                    self._refuse_other_question(sample, asked[sample.id], source)
        self.ranks.wait()

    def _refuse_other_question(self, sample: Sample, problem: Problem, source: str) -> None:
        item = Item(sample.task, sample.mode, problem, sample.sample)
        if (sample.question, sample.reference) != item.ask(self.config.seed):
            raise ValueError(
                f"{self.folder.path} has an answer to another problem {problem.id} of task {sample.task} than "
                f"{source}; give another --out, or --overwrite"
            )

    def run(self) -> None:
        """Generate and grade what is missing. An interrupted run keeps what it has."""
        with GradingPool() as pool:
            for task, mode, problems in self._groups():
                self._batch(task, mode, list(items(self.config, task, problems, mode)), pool)
            if self.config.policy == "forced":
                for task, mode, problems in self._groups():
                    for budget in self.config.budgets:
                        self._batch(task, mode, self._to_force(task, mode, problems, budget), pool)
        self.folder.close()
        self.ranks.first_does(self._finish)

    def _groups(self) -> Iterator[tuple[str, Mode, Sequence[Problem]]]:
        for task, (_, problems) in self.tasks.items():
            for mode in self.config.modes:
                yield task, mode, problems

    def _to_force(self, task: str, mode: Mode, problems: Sequence[Problem], budget: int) -> list[Item]:
        main = items(self.config, task, list(problems), mode)
        return [item._replace(budget=budget) for item in main if needs_forcing(self.done[item.key], budget)]

    def _batch(self, task: str, mode: Mode, wanted: list[Item], pool: GradingPool) -> None:
        """Of one task in one mode what is not done yet, alone in the engine, so that its times mean something."""
        missing = [item for item in wanted if item.key not in self.done]
        if not missing:
            return
        budget = missing[0].budget
        name = f"{task}, {mode}" + (f", forced at {budget}" if budget else "")
        timing, mine = Timing(), self.ranks.share(missing)
        with progress_of(name, self.show and self.ranks.is_first) as progress:

            def take(sample: Sample) -> None:
                self.folder.add(sample)
                progress.graded(sample)

            if mine:
                timing = generate_samples(self.engine, mine, self.config, pool, take, progress.step)
        timings = self.ranks.gather(timing)
        self.ranks.first_does(lambda: self._note(task, mode, budget, timings or []))
        self._read_done()

    def _note(self, task: str, mode: Mode, budget: int | None, timings: Sequence[Timing]) -> None:
        """The time of a batch is that of its slowest rank."""
        whole = Timing(
            sum(t.num_samples for t in timings), sum(t.num_generated for t in timings), max(t.seconds for t in timings)
        )
        self.header["timings"].append({"task": task, "mode": mode, "budget": budget, **asdict(whole)})
        self.folder.write_header(self.header)

    def _order(self) -> list[tuple]:
        """Keys of the samples of this run, in the order of `samples.jsonl`; those of earlier ones come behind."""
        keys = []
        for task, mode, problems in self._groups():
            for problem in problems:
                main = [Item(task, mode, problem, k) for k in range(self.config.n)]
                keys += [i._replace(budget=b).key for i in main for b in (None, *self.config.budgets)]
        return keys

    def _finish(self) -> None:
        """Raises ValueError where samples are missing, as somebody else has taken them away."""
        self.folder.merge(self._order())
        keys = {sample.key for sample in self.folder.samples(with_tokens=False)}
        main = [key for key in self._order() if key[-1] is None]
        missing = [key for key in main if key not in keys]
        if missing:
            raise ValueError(
                f"{len(missing)} samples are not in {self.folder.path}, such as {missing[0]}; run it again"
            )
        self.header["finished"] = self.header["sessions"][-1]["finished"] = now()
        self.folder.write_header(self.header)

    def note_alone(self, timed: list[dict[str, Any]]) -> None:
        """Keep the times of problems that were asked one at a time with the run. For the first rank."""
        self.header["alone"] = timed
        self.folder.write_header(self.header)

    def samples(self) -> list[Sample]:
        """All that the folder has, those of earlier runs in it as well. For the first rank."""
        return list(self.folder.samples())

    def write_results(self, samples: Sequence[Sample], report: bool = True) -> dict[str, Any]:
        """Compute `results.json` and write it, and the report. For the first rank."""
        return write_results(self.folder, self.header, samples, config_of(self.header), report)

    def close(self) -> None:
        """Let others work in the folder."""
        self.folder.close()
        self.folder.unlock()


def config_of(header: Mapping[str, Any]) -> EvaluationConfig:
    """How the run of a header was asked for."""
    sampling = header.get("sampling")
    if not isinstance(sampling, Mapping):
        raise ValueError("run.json has no `sampling`: it is not of `mvtrain evaluate`")
    return EvaluationConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in sampling.items()})


def write_results(
    folder: RunFolder,
    header: Mapping[str, Any],
    samples: Sequence[Sample],
    config: EvaluationConfig,
    report: bool = True,
) -> dict[str, Any]:
    """Results of samples, as `results.json` and, if asked for, `report.html` and `report.md`."""
    from mvtrain.evaluate.grading import same_answer

    timings = [timing for timing in header.get("timings", []) if timing.get("budget") is None]
    results = make_results(samples, config, timings, same_answer) | {"alone": header.get("alone", [])}
    write_whole(folder.path / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    if report:
        from mvtrain.evaluate.report import write_report

        write_report(folder.path, dict(header), results, samples)
    return results
