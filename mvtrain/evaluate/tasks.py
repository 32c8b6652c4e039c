"""Where problems come from: five public sets by name, from the hub or a local copy, and JSONL files of any problems."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mvtrain.evaluate.problem_files import SUFFIXES, Row, read_rows, rows_from_hub
from mvtrain.evaluate.records import Problem
from mvtrain.prompt import refuse_tags

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICE_INSTRUCTION = "Give the letter of the right option in \\boxed{}."
LONGEST_META = 100
"""Characters of a field that is kept in `meta`; solutions and explanations are longer."""

_QUESTIONS = ("question", "problem", "prompt")
_IDS = ("id", "unique_id")
_OWN_FIELDS = {*_QUESTIONS, *_IDS, "answer", "options", "solution"}
_LETTER = re.compile(r"[\s(]*([A-Za-z])[\s).:]*")
_LETTER_AND_TEXT = re.compile(r"\(?\s*([A-Za-z])\s*\)?(?:[.:)]\s.*|[.:]?\s*)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """A public set of problems."""

    name: str
    hub: str
    """`owner/name` on the hub."""
    config: str | None
    split: str
    file: str
    """Name of a local copy, without its suffix."""
    num_problems: int
    licence: str
    question: str = "problem"
    answer: str = "answer"
    wrong: tuple[str, ...] = ()
    """Columns of the wrong options; `answer` is then the right one's text."""
    id: str | None = "id"
    """The column of ids; None, or a row without it: the number of the row, from 1."""
    meta: tuple[str, ...] = ()
    gated: bool = False


TASKS = {
    task.name: task
    for task in (
        Task("aime24", "HuggingFaceH4/aime_2024", None, "train", "aime24", 30, "texts are the MAA's"),
        Task("aime25", "math-ai/aime25", None, "test", "aime25", 30, "texts are the MAA's"),
        Task(
            "math500", "HuggingFaceH4/MATH-500", None, "test", "math500", 500, "MIT",
            id="unique_id", meta=("subject", "level"),
        ),
        Task(
            "gpqa_diamond", "Idavidrein/gpqa", "gpqa_diamond", "train", "gpqa_diamond", 198,
            "CC BY 4.0; its authors ask that examples are not shown in plain text online",
            question="Question", answer="Correct Answer",
            wrong=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
            id="Record ID", meta=("High-level domain", "Subdomain"), gated=True,
        ),
        Task("gsm8k", "openai/gsm8k", "main", "test", "gsm8k_test", 1319, "MIT", question="question"),
    )
}  # fmt: skip


def load_task(name_or_path: str | Path, data_dir: str | Path | None = None, limit: int | None = None) -> list[Problem]:
    """Read the problems of a public set or of a file.

    Args:
        name_or_path: a name in `TASKS`, or a path of a JSONL, CSV or parquet file with the fields `question` (or
            `problem`, or `prompt`) and `answer`, perhaps `id` (or `unique_id`) and `options`. With `options`, `answer`
            is the letter or the text of the right one. The task of a file is its name without the suffix.
        data_dir: folder with local copies of the public sets, `math500.jsonl` for instance; None reads the hub.
        limit: the first so many problems. All rows are checked nevertheless.

    Raises:
        ValueError: names file and row of a field that is missing or wrong, of an id that is there twice, or of a
            question with a Multiverse tag; or the name is unknown, the limit below 1, or the set incomplete.
        ImportError: names the extra to install.
        OSError: the hub cannot be reached, or asks for a login.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"a limit of {limit} problems: expected at least 1")
    task = TASKS.get(str(name_or_path))
    if task is None:
        path = Path(name_or_path)
        source, name, rows = str(path), path.stem, read_rows(_existing(path))
    elif data_dir is None:
        source, name = f"{task.hub} ({task.split})", task.name
        rows = rows_from_hub(task.hub, task.config, task.split, f"{task.name} from the hub", task.gated)
    else:
        path = _local_copy(task, Path(data_dir))
        source, name, rows = str(path), task.name, read_rows(path)
    problems = _collect(source, [(row, _read(name, row, task)) for row in rows])
    if task and len(problems) != task.num_problems:
        raise ValueError(
            f"{source} has {len(problems)} problems; {task.name} has {task.num_problems}. "
            f"To evaluate on a part of it, give the file by its path, or a limit"
        )
    return problems[:limit]


def ask(problem: Problem, seed: int) -> tuple[str, str]:
    """The question as it is asked, without the suffix of the mode, and the reference.

    The options of a choice question come in an order that depends on the seed and the problem's id alone, the same in
    every process; the reference is then the letter of the right one.
    """
    if problem.kind != "choice":
        return problem.question, problem.answer
    order = sorted(range(len(problem.options)), key=lambda i: _digest(json.dumps([seed, problem.id, i])))
    lines = [f"{LETTERS[place]}) {problem.options[i]}" for place, i in enumerate(order)]
    return "\n".join([problem.question, "", *lines, "", CHOICE_INSTRUCTION]), LETTERS[order.index(0)]


def chosen_option(question: str, answer: str) -> str | None:
    """The text of the option that an answer names in a question as `ask` wrote it; None where it names none.

    An answer is a letter, perhaps with brackets or the option's text behind it.
    """
    letter, (_, options) = _LETTER_AND_TEXT.fullmatch(answer.strip()), _split_options(question)
    place = LETTERS.index(letter[1].upper()) if letter else len(options)
    return options[place] if place < len(options) else None


def without_options(question: str, reference: str) -> tuple[str, str]:
    """Of a choice question, whatever order it was asked in: (question and sorted options, the right one's text)."""
    body, options = _split_options(question)
    return "\n".join([body, *sorted(options)]), chosen_option(question, reference) or reference


def _split_options(question: str) -> tuple[str, list[str]]:
    """Undo `ask`: (question, options in the order asked). Without options where `ask` did not write it."""
    body, end, _ = question.rpartition("\n\n" + CHOICE_INSTRUCTION)
    stem, start, options = body.rpartition("\n\nA) ")
    if not (start and end):
        return question, []
    return stem, [line.partition(") ")[2] for line in f"A) {options}".split("\n")]


def fingerprint(problems: Sequence[Problem]) -> str:
    """SHA-256 of what is asked and graded, in order; `meta` does not count."""
    rows = [{key: value for key, value in asdict(problem).items() if key != "meta"} for problem in problems]
    return _digest(json.dumps(rows, sort_keys=True, ensure_ascii=True, separators=(",", ":")))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _existing(path: Path) -> Path:
    if path.is_file():
        return path
    names = ", ".join(TASKS)
    raise ValueError(f"{path}: no such file, and no task of that name; tasks: {names}, or a JSONL file of problems")


def _local_copy(task: Task, folder: Path) -> Path:
    for suffix in SUFFIXES:
        if (folder / f"{task.file}{suffix}").is_file():
            return folder / f"{task.file}{suffix}"
    names = ", ".join(task.file + suffix for suffix in SUFFIXES)
    raise ValueError(f"{folder}: no local copy of {task.name}; expected one of {names}")


def _collect(source: str, found: Sequence[tuple[Row, Problem]]) -> list[Problem]:
    """The problems, once every id is known to be there once."""
    if not found:
        raise ValueError(f"{source}: no problem in it; expected one JSON object with `question` and `answer` a line")
    rows: dict[str, Row] = {}
    for row, problem in found:
        if problem.id in rows:
            raise ValueError(f"{row}: the id {problem.id!r} is there already, in {rows[problem.id].place}")
        rows[problem.id] = row
    return [problem for _, problem in found]


def _read(name: str, row: Row, task: Task | None) -> Problem:
    try:
        problem = _public_problem(task, row) if task else _any_problem(name, row)
        for text in (problem.question, *problem.options):
            refuse_tags(text)
    except ValueError as error:
        raise ValueError(f"{row}: {error}") from None
    return problem


def _public_problem(task: Task, row: Row) -> Problem:
    question = _text(row.fields, task.question)
    answer = _text(row.fields, task.answer)
    number = row.fields.get(task.id) if task.id else None
    meta = {key: str(row.fields[key]) for key in task.meta if row.fields.get(key) not in (None, "")}
    problem = Problem(task.name, str(row.number if number is None else number), question, answer, meta=meta)
    if not task.wrong:
        return replace(problem, answer=_final_part(answer))
    options = [answer, *(_text(row.fields, column) for column in task.wrong)]
    return _as_choice(problem, [_on_one_line(option) for option in options], right=0)


def _any_problem(name: str, row: Row) -> Problem:
    fields = row.fields
    question = _text(fields, next((key for key in _QUESTIONS if key in fields), "question"))
    answer = _text(fields, "answer")
    number = next((str(fields[key]) for key in _IDS if fields.get(key) is not None), str(row.number))
    meta = {key: str(value) for key, value in fields.items() if _is_meta(key) and _is_short(value)}
    problem = Problem(name, number, question, answer, meta=meta)
    if fields.get("options") is None:
        return replace(problem, answer=_final_part(answer))
    options = _options(fields["options"])
    return _as_choice(problem, options, _right_option(options, _on_one_line(answer)))


def _text(fields: Mapping[str, Any], column: str) -> str:
    """A field with text or a number, as text."""
    if column not in fields or fields[column] is None:
        raise ValueError(f"the field `{column}` is missing; the row has {', '.join(map(str, fields)) or 'none'}")
    text = _as_text(fields[column])
    if text is None:
        raise ValueError(f"the field `{column}` is {fields[column]!r:.60}; expected text or a number")
    if not text:
        raise ValueError(f"the field `{column}` is empty")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"the field `{column}` holds half of a surrogate pair, which is no text")
    return text


def _as_text(value: Any) -> str | None:
    """Text without white space around it; 18.0 is 18. None for what is neither text nor a number."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return str(int(value)) if value == int(value) else str(value)


def _final_part(answer: str) -> str:
    """What follows `####`, as in GSM8K; else all of it."""
    final = answer.rpartition("####")[2].strip()
    if not final:
        raise ValueError("the answer ends at ####; expected the final answer behind it")
    return final


def _is_meta(column: str) -> bool:
    """Whether a column may say something of a problem, rather than be a trace or an answer to train on."""
    return column not in _OWN_FIELDS and column != "response" and not column.startswith("deepseek_")


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | float) and len(str(value)) <= LONGEST_META and "\n" not in str(value)


def _options(value: Any) -> list[str]:
    options = [_as_text(option) for option in value] if isinstance(value, list) else []
    if not 2 <= len(options) <= len(LETTERS) or not all(options):
        raise ValueError(f"the field `options` is {value!r:.60}; expected a list of 2 to {len(LETTERS)} texts")
    return [_on_one_line(option) for option in options if option]


def _on_one_line(option: str) -> str:
    return " ".join(option.split())


def _right_option(options: Sequence[str], answer: str) -> int:
    """Which option `answer` means, by its letter or its text."""
    letter = _LETTER.fullmatch(answer)
    place = LETTERS.index(letter[1].upper()) if letter else len(options)
    meant = {i for i, option in enumerate(options) if option == answer}
    meant |= {place} if place < len(options) else set()
    if len(meant) == 1:
        return meant.pop()
    last = LETTERS[len(options) - 1]
    if not meant:
        raise ValueError(f"the answer {answer!r:.60} is no option; expected a letter from A to {last}, or an option")
    names = " and ".join(LETTERS[i] for i in sorted(meant))
    raise ValueError(f"the answer {answer!r:.60} means the options {names}; expected exactly one")


def _as_choice(problem: Problem, options: Sequence[str], right: int) -> Problem:
    """The right option first, then the others as they came."""
    others = [option for i, option in enumerate(options) if i != right]
    if options[right] in others:
        raise ValueError(f"the right option {options[right]!r:.60} is also a wrong one")
    return replace(problem, kind="choice", options=(options[right], *others), answer="A")
