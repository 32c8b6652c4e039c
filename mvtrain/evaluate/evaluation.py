"""A whole evaluation: every task in every mode, answers forced at budgets, results and report. Goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvtrain.evaluate.budgets import needs_forcing
from mvtrain.evaluate.config import EvaluationConfig, Item, items
from mvtrain.evaluate.generation import Timing, generate_samples
from mvtrain.evaluate.grading_pool import GradingPool
from mvtrain.evaluate.header import now, run_header
from mvtrain.evaluate.progress import progress_of
from mvtrain.evaluate.ranks import EvaluationRanks
from mvtrain.evaluate.records import Mode, Problem, Sample
from mvtrain.evaluate.results import make_results
from mvtrain.evaluate.run_folder import RESULTS_NAME, RunFolder, write_whole

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
        self.ranks.first_does(lambda: self._prepare(overwrite))
        self.done: dict[tuple, Sample] = {}
        self._read_done()

    def _prepare(self, overwrite: bool) -> None:
        self.folder.prepare(self.header["identity"], overwrite)
        before = self.folder.header()
        self.header["timings"] = before.get("timings", [])
        self.header["started"] = before.get("started", self.header["started"])
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
        """Keys of all samples that this run is about, in the order of `samples.jsonl`."""
        keys = []
        for task, mode, problems in self._groups():
            for problem in problems:
                main = [Item(task, mode, problem, k) for k in range(self.config.n)]
                keys += [i._replace(budget=b).key for i in main for b in (None, *self.config.budgets)]
        return keys

    def _finish(self) -> None:
        self.folder.merge(self._order())
        self.header["finished"] = now()
        self.folder.write_header(self.header)

    def samples(self) -> list[Sample]:
        """Those that this run is about, in order; its folder may have more, from a run with more of them."""
        wanted = set(self._order())
        return [sample for sample in self.folder.samples() if sample.key in wanted]

    def write_results(self, samples: Sequence[Sample], report: bool = True) -> dict[str, Any]:
        """Compute `results.json` and write it, and the report. For the first rank."""
        return write_results(self.folder, self.header, samples, self.config, report)


def config_of(header: Mapping[str, Any]) -> EvaluationConfig:
    """How the run of a header was asked for."""
    sampling = header.get("sampling")
    if not isinstance(sampling, Mapping):
        raise ValueError("run.json has no `sampling`: it is not of `mvtrain evaluate`")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in sampling.items()}
    if "finished" not in header:  # answers that are to be forced may be missing
        values["policy"] = "wrong"
    return EvaluationConfig(**values)


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
    results = make_results(samples, config, timings, same_answer)
    write_whole(folder.path / RESULTS_NAME, json.dumps(results, indent=2) + "\n")
    if report:
        from mvtrain.evaluate.report import write_report

        write_report(folder.path, dict(header), results, samples)
    return results
