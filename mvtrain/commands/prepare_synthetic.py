"""Write generated problems whose answers can be checked, in sequential and in parallel form."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mvtrain.data import tasks
from mvtrain.folders import whole_file
from mvtrain.prompt import response_text

TRAVELLERS = "travellers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="JSONL file to write")
    parser.add_argument("--task", choices=(TRAVELLERS, *tasks.TASKS), default=TRAVELLERS,
        help=f"which problems (default {TRAVELLERS})")  # fmt: skip
    parser.add_argument("--difficulty", metavar="D",
        help="a number, or a range as 2-5: variables of sat, words of copying, ways of the others")  # fmt: skip
    parser.add_argument("--plain", action="store_true",
        help="rows of question and response: the chain without any tag, to train a model that has none")  # fmt: skip
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="how many problems (default 1000)")
    parser.add_argument("--seed", type=int, default=0,
        help="another seed gives other problems; those of a task, if it differs modulo 4 (default 0)")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.count < 1:
        raise ValueError(f"--count {args.count}: expected at least 1")
    found = _problems(args)
    name = "synthetic" if args.task == TRAVELLERS else args.task
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as file:
        for index, problem in enumerate(found):
            row = problem.row(f"{name}-{args.seed}-{index}")
            file.write(json.dumps(_plain(row) if args.plain else row) + "\n")
    print(f"wrote {args.count} problems to {args.out}")
    return 0


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """The sequential form as a whole turn of the assistant, so that no `<Think>` is put around it."""
    response = response_text(row["deepseek_thinking_trajectory_sequential"], row["deepseek_attempt"])
    return {"id": row["id"], "question": row["question"], "response": response, "answer": row["answer"]}


def _problems(args: argparse.Namespace) -> Iterable[Any]:
    if args.task == TRAVELLERS:
        from mvtrain.data.synthetic import problems

        if args.difficulty is not None:
            raise ValueError(f"--difficulty {args.difficulty}: {TRAVELLERS} have none; give another --task")
        return problems(args.count, args.seed)
    difficulty = _difficulty(args.difficulty)
    tasks.difficulty_range(args.task, difficulty)
    return tasks.problems(args.task, args.count, args.seed, difficulty)


def _difficulty(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise ValueError(f"--difficulty {text}: expected a number, or a range such as 2-5") from None
