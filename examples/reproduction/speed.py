"""Time of generation: the trained models' own answers, one at a time and in batches, in parallel and in sequence."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from mvtrain.engine import Engine, SamplingParams
from reproduction.models import Work
from reproduction.plan import GROWTH

TURNS = 3
"""Of every measurement; the median counts."""


def questions_of(work: Work, names: Sequence[str], count: int) -> list[str]:
    """The first questions of every file, alternately, `count` in all at most."""
    columns = []
    for name in names:
        lines = work.file(name).read_text(encoding="utf-8").splitlines()
        columns.append([json.loads(line)["question"] for line in lines])
    longest = max(map(len, columns))
    mixed = [column[i] for i in range(longest) for column in columns if i < len(column)]
    return mixed[:count]


def alone(work: Work) -> list[dict[str, float]]:
    """Problems one at a time (figure 8a): every answer's parallelism, and seconds per token in both modes.

    Speed-up is seconds per token in sequence over seconds per token in parallel. Both are of one model, and turn and
    turn about, so that what else the machine does meets both alike.
    """
    engine = Engine.from_pretrained(str(work.model("multiverse")), max_batch=1)
    names = ["test_mixed", *(f"test_sat_{variables}" for variables in GROWTH)]
    rows = []
    for question in questions_of(work, names, work.size.timed):
        turns = [
            (_timed(work, engine, [question], True), _timed(work, engine, [question], False)) for _ in range(TURNS)
        ]
        parallel, sequential = (statistics.median(t[k]["seconds_per_token"] for t in turns) for k in (0, 1))
        rows.append(
            {
                "parallelism": turns[0][0]["parallelism"],
                "ms_per_token": 1e3 * parallel,
                "ms_per_token_sequential": 1e3 * sequential,
                "speed_up": sequential / parallel,
            }
        )
    return rows


def in_batches(work: Work) -> list[dict[str, float]]:
    """Batches of problems (figure 8b): tokens a second in parallel, in sequence, and of transformers' `generate`."""
    folder, rows = str(work.model("multiverse")), []
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    names = [f"test_sat_{variables}" for variables in GROWTH]
    few = questions_of(work, names, max(work.size.batches))
    for batch in work.size.batches:
        questions = (few * -(-batch // len(few)))[:batch]
        engine = Engine.from_pretrained(folder, max_batch=batch)
        turns = [[_timed(work, engine, questions, True), _timed(work, engine, questions, False)] for _ in range(TURNS)]
        theirs = statistics.median(_stock_tokens_per_second(work, stock, engine, questions) for _ in range(TURNS))
        parallel, sequential = (1 / statistics.median(t[k]["seconds_per_token"] for t in turns) for k in (0, 1))
        rows.append(
            {
                "batch": batch,
                "parallelism": turns[0][0]["parallelism"],
                "tokens_per_second": parallel,
                "tokens_per_second_sequential": sequential,
                "tokens_per_second_transformers": theirs,
                "speed_up": parallel / sequential,
            }
        )
    return rows


def _timed(work: Work, engine: Engine, questions: Sequence[str], parallel: bool) -> dict[str, Any]:
    began = time.perf_counter()
    done = engine.generate(questions, SamplingParams(max_tokens=work.size.max_tokens, parallel=parallel))
    seconds = time.perf_counter() - began
    num_tokens = sum(completion.num_generated for completion in done)
    path = sum(completion.critical_path for completion in done)
    return {"seconds_per_token": seconds / num_tokens, "parallelism": num_tokens / path}


@torch.no_grad()
def _stock_tokens_per_second(work: Work, model: Any, engine: Engine, questions: Sequence[str]) -> float:
    """transformers' own generation of the same questions in sequence, padded on the left. Only real tokens count."""
    params = SamplingParams(parallel=False)
    prompts = [engine.encode(question, params) for question in questions]
    longest, eos = max(map(len, prompts)), engine.tokenizer.eos_token_id
    ids = torch.tensor([[eos] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=work.size.max_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    seconds = time.perf_counter() - began
    written = out[:, longest:] != eos
    return (int(written.sum()) + len(questions)) / seconds


def num_parameters(work: Work) -> int:
    return AutoModelForCausalLM.from_pretrained(str(work.model("multiverse"))).num_parameters()
