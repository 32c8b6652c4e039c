"""Data and models of the reproduction, by the public commands: prepare, convert, train, untag, convert, fine-tune."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import commands
from commands import ROOT, run
from safetensors.torch import load_file, save_file

from reproduction.plan import EASY, GROWTH, HARD, TESTED, Size, seed_of

TUNING = "small_tuning.yaml"
ALONE = ["--data.curriculum", "none"]


@dataclass(frozen=True)
class Work:
    """Where a reproduction lies, how large it is, and its seed."""

    out: Path
    size: Size
    seed: int = 0
    held_out: str = "test"
    """Which problems the models answer: `test`, or `validate` to choose sizes and rates on."""

    def file(self, name: str) -> Path:
        return self.out / "data" / f"{name}.jsonl"

    def model(self, name: str) -> Path:
        """The folder of a model as it is evaluated."""
        return self.out / name if name == "base" else self.out / name / "export"


def prepare(work: Work) -> None:
    """All problems: to train the base on, to fine-tune on, and to test."""
    size = work.size
    _problems(work, "copying", "copying", size.copying, "4-20", "train", "--plain")
    for task in EASY:
        _problems(work, f"{task}_plain", task, size.easy[task], EASY[task], "train", "--plain")
        _problems(work, task, task, size.tuning[task], HARD[task], "tune")
        _problems(work, _few(task), task, size.few[task], HARD[task], "tune")
        _problems(work, f"test_{task}", task, size.test[task], TESTED[task], work.held_out)
    for variables in GROWTH:
        _problems(work, f"test_sat_{variables}", "sat", size.growth, variables, work.held_out)


def _problems(work: Work, name: str, task: str, count: int, difficulty: str | int, part: str, *flags: str) -> None:
    file = work.file(name)
    if not file.exists():
        numbers = ["--count", str(count), "--seed", str(seed_of(part, work.seed)), "--difficulty", str(difficulty)]
        run("mvtrain", "prepare", "synthetic", str(file), "--task", task, *numbers, *flags)


def make_base(work: Work) -> None:
    """A model without tags: first words to say again, then plain chains of easy problems."""
    if (work.out / "base" / "mvtrain.json").exists():
        return
    script, size = str(ROOT / "examples" / "small_model.py"), work.size
    ar, tagged, trained = (str(work.out / name) for name in ("ar", "tagged", "base_ar"))
    _once(work.out / "ar" / "config.json", sys.executable, script, "make", ar, "--seed", str(work.seed))
    _once(work.out / "tagged" / "mvtrain.json", "mvtrain", "convert", ar, tagged)
    train(work, "copying", "small_base.yaml", tagged, size.copying_tokens, sequential=["copying"])
    chains = [f"{task}_plain" for task in EASY]
    train(work, "chains", "small_base.yaml", str(work.model("copying")), size.base_tokens, sequential=chains)
    _once(work.out / "base_ar" / "config.json", sys.executable, script, "untag", str(work.model("chains")), ar, trained)
    run("mvtrain", "convert", trained, str(work.out / "base"))


def _once(result: Path, *command: str) -> None:
    if not result.exists():
        run(*command)


def train(
    work: Work,
    name: str,
    recipe: str,
    start: str,
    max_tokens: int | None = None,
    sequential: list[str] | None = None,
    parallel: list[str] | None = None,
    flags: list[str] | None = None,
) -> None:
    """One training on two processes with ZeRO-3; passed over where its export is there.

    Args:
        name: of the model; start: the folder it begins as.
        sequential, parallel: names of problem files.
    """
    if (work.model(name) / "mvtrain.json").exists():
        print(f"{name} is trained already: passed over")
        return
    given = ["--model", start, "--output_dir", str(work.out / name), "--seed", str(work.seed)]
    given += ["--data.seed", str(42 + work.seed)]
    given += ["--data.sequential", _sources(work, sequential), "--data.parallel", _sources(work, parallel)]
    given += ["--data.max_tokens", str(max_tokens)] if max_tokens else []
    commands.train(recipe, *given, *(flags or []))


def _sources(work: Work, names: list[str] | None) -> str:
    return f"[{', '.join(str(work.file(name)) for name in names or [])}]"


def tune(work: Work) -> None:
    """The Multiverse model, and the autoregressive one of the same chains and as many tokens."""
    train(work, "multiverse", TUNING, str(work.model("base")), sequential=list(EASY), parallel=list(EASY))
    tokens = tokens_of(work, "multiverse")
    train(work, "autoregressive", TUNING, str(work.model("base")), tokens, sequential=list(EASY), flags=ALONE)


def tokens_of(work: Work, name: str) -> int:
    """Tokens of a whole training."""
    lines = (work.out / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return sum(json.loads(line).get("tokens", 0) for line in lines)


def ablation(work: Work, name: str) -> None:
    """As `reference` but for one thing; `reference` is as `multiverse`, of fewer problems."""
    few = [_few(task) for task in EASY]
    start, sequential, flags, tokens = str(work.model("base")), few, [], None
    if name in ("original", "causal"):
        flags = ["--scheme", name]
    elif name == "parallel_only":
        sequential, flags, tokens = [], ALONE, tokens_of(work, "reference")
    elif name == "same_rows":
        start = str(same_rows(work.model("base"), work.out / "base_same_rows"))
    elif name == "fast_rows":
        flags = ["--tag_learning_rate", FAST]
    train(work, name, TUNING, start, tokens, sequential, few, flags)


def _few(task: str) -> str:
    return f"{task}_few"


FAST = "3.0e-2"
"""Ten times the recipe's learning rate."""


def same_rows(base: Path, out: Path) -> Path:
    """A copy of a converted checkpoint whose tags all begin as the mean of all rows, instead of their names' rows."""
    if not out.exists():
        part = out.with_name(f"{out.name}.part")
        shutil.copytree(base, part, dirs_exist_ok=True)
        tags = list(json.loads((base / "mvtrain.json").read_text(encoding="utf-8"))["tags"].values())
        weights = load_file(part / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in weights:
                weights[name][tags] = weights[name][: min(tags)].mean(dim=0)
        save_file(weights, part / "model.safetensors", {"format": "pt"})
        part.rename(out)  # whole, or not there
    return out


def transfer(work: Work, num_examples: int) -> None:
    """As `reference`, of fewer examples yet, in its proportion of tasks."""
    names, few = [], work.size.few
    for task, count in few.items():
        names.append(f"{task}_{num_examples}")
        share = round(num_examples * count / sum(few.values()))
        _problems(work, names[-1], task, share, HARD[task], "tune")
    train(work, f"transfer_{num_examples}", TUNING, str(work.model("base")), sequential=names, parallel=names)
