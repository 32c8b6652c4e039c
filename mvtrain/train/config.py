"""What a training run is: a recipe (YAML) and flags that override it.

Importing this module needs no torch, so that `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mvtrain.train.mistakes import complain

USAGE = "deepspeed [launcher flags] launch/sft.py RECIPE.yaml [--key value ...]"
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


class ConfigError(ValueError):
    """Everything that is wrong with a configuration. `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("the configuration has mistakes:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = list(problems)


class _Group(BaseModel):
    # Sources and names are often numbers in YAML (`name: 7`); they are meant as text.
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, protected_namespaces=())


class DataConfig(_Group):
    parallel: list[str] = Field([], description="sources of parallel traces: JSONL or parquet files, or hub names")
    sequential: list[str] = Field([], description="sources of sequential chains, likewise")
    curriculum: Literal["eight_phase", "none"] = Field(
        "none", description="eight_phase: the eight mixtures in order; none: everything, shuffled, each epoch"
    )
    epochs: int | None = Field(
        None, ge=1, description="passes over the data or the curriculum; default 1, or as many as max_tokens needs"
    )
    max_tokens: int | None = Field(None, ge=1, description="end the plan at this many tokens, to compare runs fairly")
    malformed: Literal["error", "skip"] = Field("error", description="a row that is no well-formed trace: stop or skip")
    too_long: Literal["error", "drop"] = Field("drop", description="an example longer than `context`: stop, or drop it")
    seed: int = Field(42, ge=0, description="seed of shuffling and packing")

    @field_validator("parallel", "sequential", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("parallel", "sequential")
    @classmethod
    def _files_exist(cls, value: list[str]) -> list[str]:
        missing = [source for source in value if source.endswith(FILE_SUFFIXES) and not Path(source).is_file()]
        if missing:
            raise ValueError(f"no such file: {', '.join(missing)}")
        return value

    @model_validator(mode="after")
    def _has_sources(self) -> DataConfig:
        if not self.parallel and not self.sequential:
            raise ValueError("no sources; give data.parallel, data.sequential or both")
        if self.curriculum == "eight_phase" and not (self.parallel and self.sequential):
            raise ValueError("curriculum eight_phase mixes data.sequential and data.parallel: give both")
        return self


class WandbConfig(_Group):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: as WANDB_MODE says, else online with a key in the environment or netrc, else offline"
    )
    project: str | None = Field(None, description="Weights & Biases project; without one nothing is sent or written")
    name: str | None = Field(None, description="name of the run; default: the last part of output_dir")


class EvaluateConfig(_Group):
    every_steps: int = Field(0, ge=0, description="evaluate every so many steps, and at the end; 0: never")
    task: str | None = Field(None, description="a task of `mvtrain evaluate`, or a JSONL file of problems")
    data_dir: str | None = Field(None, description="local copies of the tasks; default: the hub")
    limit: int | None = Field(32, ge=1, description="the first so many problems")
    modes: list[Literal["parallel", "unasked", "sequential"]] = Field(
        ["parallel"], min_length=1, description="as in `mvtrain evaluate`"
    )
    max_tokens: int = Field(1024, ge=1, description="limit on the critical path")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    batch_size: int = Field(32, ge=1, description="answers that a rank writes at a time")
    report: bool = Field(False, description="a report.html for every evaluation")

    @model_validator(mode="after")
    def _has_a_task(self) -> EvaluateConfig:
        if self.every_steps and not self.task:
            raise ValueError("evaluate.every_steps needs evaluate.task: a name, or a JSONL file of problems")
        if self.task and self.task.endswith(FILE_SUFFIXES) and not Path(self.task).is_file():
            raise ValueError(f"no such file: {self.task}")
        return self


class TrainConfig(_Group):
    """Everything `launch/sft.py` can be told. Sections only group the help."""

    model: str = Field(description="folder of a checkpoint with the tags (`mvtrain convert SOURCE FOLDER`)")
    output_dir: str = Field(description="checkpoints, log.jsonl and the exported model go here")
    scheme: Literal["isolated", "original", "causal"] | None = Field(
        None,
        description="positions and visibility; default: the checkpoint's own; causal: the stock mask, for comparisons",
    )
    attention: Literal["auto", "varlen", "flex", "reference"] = Field("auto", description="attention backend")
    gradient_checkpointing: bool = Field(False, description="recompute layers in backward: less memory, a third slower")
    save_attention: bool = Field(
        False, description="with gradient_checkpointing: keep the attention of each layer instead of recomputing it"
    )
    loss_chunk: int = Field(1024, ge=1, description="tokens whose logits exist at a time")

    data: DataConfig = Field(description="what to train on")

    context: int = Field(32768, ge=1, description="capacity of a pack in tokens; no example is cut")
    micro_batch_size: int = Field(1, ge=1, description="packs per rank and micro-step")
    gradient_accumulation_steps: int = Field(1, ge=1, description="micro-steps per optimizer step")
    packs_per_step: int | None = Field(
        None,
        ge=1,
        description="packs per optimizer step over all ranks; gradient_accumulation_steps follows",
    )
    sequence_parallel_size: int = Field(1, ge=1, description="ranks that share each pack's tokens (Ulysses)")
    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    tag_learning_rate: float | None = Field(
        None, gt=0, description="peak for the tags' rows of embedding and head; default: learning_rate"
    )
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="the cosine ends at this share of the peak")
    warmup_ratio: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises linearly")
    weight_decay: float = Field(1e-4, ge=0, description="on matrices and embeddings; none on norms and biases")
    betas: tuple[float, float] = Field((0.9, 0.95), description="AdamW's")
    max_grad_norm: float = Field(1.0, ge=0, description="clip gradients to this norm; 0: do not")
    max_steps: int | None = Field(None, ge=1, description="end after this many steps of the plan; the schedule fits")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16 keeps fp32 master weights")
    deepspeed: str = Field("ds_configs/zero3.json", description="DeepSpeed configuration; see ds_configs/README.md")
    zero_stage: int | None = Field(None, ge=0, le=3, description="override the stage of the DeepSpeed configuration")
    seed: int = Field(0, ge=0, description="seed of torch")
    save_every_steps: int = Field(0, ge=0, description="checkpoint every so many steps; 0: only at the end of training")
    keep: int = Field(2, ge=1, description="newest checkpoints to keep")
    keep_every_steps: int = Field(0, ge=0, description="keep every checkpoint of a multiple of this too; 0: none")
    on_save_error: Literal["stop", "continue"] = Field(
        "stop", description="when a checkpoint cannot be written (disk full): stop the run, or go on without it"
    )
    max_bad_steps: int = Field(3, ge=1, description="stop after so many non-finite steps in a row; each is skipped")
    resume: str = Field(
        "auto",
        description="auto: newest checkpoint in output_dir; never: stop if there is one; or a folder",
    )
    export_dtype: Literal["auto", "bf16", "fp32"] = Field("auto", description="of the exported model; auto: precision")

    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="evaluations while training")

    log_every: int = Field(1, ge=1, description="steps between two lines of progress; log.jsonl has every step")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Weights & Biases")

    dry_run: bool = Field(False, exclude=True, description="print configuration, data, plan and memory; do not train")

    @field_validator("model")
    @classmethod
    def _model_exists(cls, value: str) -> str:
        if not (Path(value) / "config.json").is_file():
            raise ValueError(f"no checkpoint in {value}; make one with `mvtrain convert SOURCE {value}`")
        return value

    @field_validator("output_dir")
    @classmethod
    def _output_dir_is_no_file(cls, value: str) -> str:
        if Path(value).exists() and not Path(value).is_dir():
            raise ValueError(f"{value} is a file; give a folder")
        return value

    @field_validator("deepspeed")
    @classmethod
    def _deepspeed_exists(cls, value: str) -> str:
        if not Path(value).is_file():
            raise ValueError(f"no such file: {value}")
        return value

    @field_validator("resume")
    @classmethod
    def _resume_exists(cls, value: str) -> str:
        if value not in ("auto", "never") and not Path(value).is_dir():
            raise ValueError(f"no such checkpoint: {value}; give auto, never or a folder")
        return value

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError(f"both must be at least 0 and less than 1, not {value}")
        return value

    @model_validator(mode="after")
    def _tags_are_not_slower(self) -> TrainConfig:
        if self.tag_learning_rate is not None and self.tag_learning_rate < self.learning_rate:
            raise ValueError(f"tag_learning_rate must be at least learning_rate, {self.learning_rate}")
        return self

    @model_validator(mode="after")
    def _one_way_to_say_the_batch(self) -> TrainConfig:
        if self.packs_per_step and self.gradient_accumulation_steps != 1:
            raise ValueError("packs_per_step sets gradient_accumulation_steps; give one of the two")
        return self

    @model_validator(mode="after")
    def _export_holds_what_was_trained(self) -> TrainConfig:
        if self.export_dtype == "fp32" and self.precision == "bf16":
            raise ValueError("export_dtype: fp32 needs precision fp32; a bf16 run exports the bf16 weights it trained")
        return self

    @property
    def export_precision(self) -> str:
        return self.precision if self.export_dtype == "auto" else self.export_dtype

    @classmethod
    def parse(cls, argv: Sequence[str]) -> TrainConfig:
        """Recipe first, then `--key value` overrides.

        Raises:
            ConfigError: with every mistake that can be told apart.
        """
        values, problems = _read(argv)
        try:
            config = cls(**values)
        except ValidationError as error:
            problems += [_explain(entry) for entry in error.errors()]
        if problems:
            raise ConfigError(problems)
        return config

    @classmethod
    def from_cli(cls, argv: Sequence[str] | None = None) -> TrainConfig:
        """`parse` for a program: `--help` prints and exits; mistakes are printed once, and the exit status is 2."""
        argv = list(sys.argv[1:] if argv is None else argv)
        if not argv or "--help" in argv or "-h" in argv:
            print(describe())
            raise SystemExit(0 if argv else 2)
        try:
            return cls.parse(argv)
        except ConfigError as error:
            complain(str(error))
            raise SystemExit(2) from None


_SECTIONS = {"model": "model", "data.parallel": "data", "context": "training", "log_every": "tracking"}
"""First field -> heading of the help."""


def describe() -> str:
    """The text of `--help`: every field with its default and meaning."""
    lines = [f"usage: {USAGE}", "", "A recipe is YAML with these keys; flags override it (--data.epochs 2)."]
    for key, field in _fields(TrainConfig):
        if key in _SECTIONS:
            lines.append(f"\n{_SECTIONS[key]}")
        default = "required" if field.is_required() else _show(field.get_default(call_default_factory=True))
        lines.append(f"  {key:<28} {field.description} [{default}]")
    return "\n".join(lines)


def _fields(group: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, field in group.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _read(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Values of the recipe overridden by the flags, and what is wrong with either."""
    recipes, flags, problems = _split(argv)
    values: dict[str, Any] = {}
    if len(recipes) > 1:
        problems.append(f"more than one recipe: {', '.join(recipes)}; lists are written [a, b]")
    for recipe in recipes[:1]:
        try:
            values = yaml.safe_load(Path(recipe).read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError([f"no recipe in {recipe} ({error.strerror})"]) from None
        except UnicodeDecodeError:
            raise ConfigError([f"{recipe} is not UTF-8 text; a recipe is a YAML file"]) from None
        except yaml.YAMLError as error:
            problems.append(f"{recipe} is not YAML: {' '.join(str(error).split())}")
        if not isinstance(values, dict):
            problems.append(f"{recipe}: expected keys and values, found {type(values).__name__}")
            values = {}
    for key, value in flags:
        _assign(values, key.split("."), value)
    return values, problems


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]], list[str]]:
    """Recipes, (key, value) of the flags, and problems. The launcher's --local_rank is dropped."""
    recipes: list[str] = []
    flags: list[tuple[str, Any]] = []
    problems: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            recipes.append(word)
            continue
        key, equals, text = word[2:].partition("=")
        key = key.replace("-", "_")
        if key == "dry_run" and not equals:
            flags.append((key, True))
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                problems.append(f"{key}: the flag needs a value")
                continue
            text = rest.pop(0)
        if key != "local_rank":
            flags.append((key, _value(text)))
    return recipes, flags, problems


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = values.get(name)
        values = values.setdefault(name, {}) if inner is None or isinstance(inner, dict) else {}
    values[path[-1]] = value


def _explain(error: dict[str, Any]) -> str:
    """One line for one of pydantic's errors: the key, what is wrong, and the value or the nearest key."""
    key = ".".join(str(part) for part in error["loc"])
    if not key:
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key{_suggest(key)}"
    if error["type"] == "missing":
        return f"{key}: missing; it is required"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key}: should be {message}, not {error['input']!r}"


def _suggest(key: str) -> str:
    known = [name for name, _ in _fields(TrainConfig)]
    same_leaf = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    close = same_leaf or difflib.get_close_matches(key, known, 1, 0.6)
    if not close:
        leaves = {name.rpartition(".")[2]: name for name in known}
        close = [leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], leaves, 1, 0.6)]
    return f"; did you mean {close[0]}?" if close else "; `--help` lists the keys"
