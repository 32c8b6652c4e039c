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
        found = _in_turns(work, engine, [question])
        parallel, sequential = (1e3 / found.pop(f"tokens_per_second{mode}") for mode in ("", "_sequential"))
        rows.append({**found, "ms_per_token": parallel, "ms_per_token_sequential": sequential})
    return rows


def in_batches(work: Work) -> list[dict[str, float]]:
    """Batches of problems (figure 8b): tokens a second in parallel, in sequence, and of transformers' `generate`.

    All are problems of one size, so that rows differ in the batch alone.
    """
    folder, rows = str(work.model("multiverse")), []
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    few = questions_of(work, ["test_sat"], max(work.size.batches))
    for batch in work.size.batches:
        questions = (few * -(-batch // len(few)))[:batch]
        engine = Engine.from_pretrained(folder, max_batch=batch)
        theirs = statistics.median(_stock_tokens_per_second(work, stock, engine, questions) for _ in range(TURNS))
        found = _in_turns(work, engine, questions)
        rows.append({"batch": batch, **found, "tokens_per_second_transformers": theirs})
    return rows


def _in_turns(work: Work, engine: Engine, questions: Sequence[str]) -> dict[str, float]:
    """Medians of tokens a second in both modes and of their ratio, with the least and the most of the ratio."""
    turns = [[_timed(work, engine, questions, parallel) for parallel in (True, False)] for _ in range(TURNS)]
    ratios = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in turns]
    return {
        "parallelism": turns[0][0]["parallelism"],
        "tokens_per_second": statistics.median(ours["tokens_per_second"] for ours, _ in turns),
        "tokens_per_second_sequential": statistics.median(theirs["tokens_per_second"] for _, theirs in turns),
        "speed_up": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }


def _timed(work: Work, engine: Engine, questions: Sequence[str], parallel: bool) -> dict[str, Any]:
    began = time.perf_counter()
    done = engine.generate(questions, SamplingParams(max_tokens=work.size.max_tokens, parallel=parallel))
    seconds = time.perf_counter() - began
    num_tokens = sum(completion.num_generated for completion in done)
    path = sum(completion.critical_path for completion in done)
    return {"tokens_per_second": num_tokens / seconds, "parallelism": num_tokens / path}


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
