"""A made-up run for tests of the report: samples with blocks and details per token, and texts that attack a page."""

from __future__ import annotations

import random
from typing import Any

from mvtrain.evaluate.config import EvaluationConfig
from mvtrain.evaluate.records import Sample
from mvtrain.evaluate.results import make_results
from tests.samples import make_sample

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)></script>\"'`${alert(3)}<!--|**[x](javascript:alert(4))"
HEADER: dict[str, Any] = {
    "checkpoint": {"path": "runs/quickstart/parallel/export", "fingerprint": "ab" * 32},
    "command": "mvtrain evaluate runs/quickstart/parallel/export --task sums.jsonl --samples 2 --temperature 0.6",
    "started": "2026-01-02T03:04:05+00:00",
    "hardware": "2 cores",
    "dtype": "bfloat16",
    "verified": {"ok": True, "dtype": "bfloat16", "limited": "sampled", "sampled_difference": 0.004, "limit": 0.05},
    "prompts": {"parallel": "<|im_start|>user\n{question} Think step by step and in parallel."},
}
CONFIG = EvaluationConfig(
    modes=("parallel", "sequential"), n=2, temperature=0.6, budgets=(100, 400, 900), max_tokens=1000
)


def make_run(num_problems: int, num_tokens: int, n: int = 2, seed: int = 0) -> tuple[dict, list[Sample]]:
    """(results, samples) of a task in two modes, `n` samples each, of about `num_tokens` tokens."""
    rng = random.Random(seed)
    samples = [
        _sample(rng, f"p{id:04d}", k, mode, num_tokens)
        for id in range(num_problems)
        for mode in ("parallel", "sequential")
        for k in range(n)
    ]
    return make_results(
        samples, CONFIG, [{"task": "sums", "mode": "parallel", "num_generated": 900, "seconds": 3.0}]
    ), samples


def _sample(rng: random.Random, id: str, k: int, mode: str, num_tokens: int) -> Sample:
    words = [rng.choice(["two ", "three ", "and ", "so ", "half ", "\n"]) for _ in range(num_tokens)]
    parallel = mode == "parallel"
    if parallel:
        start, length = num_tokens // 4, num_tokens // 4
        words[start - 1] = "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"
        words[start], words[start + length] = "<Path>1: ", "<Path>2: "
        words[start + length - 1] = words[start + 2 * length - 1] = "</Path>"
        words[start + 2 * length] = "<Conclusion>c</Conclusion></Parallel>"
    text = "".join(words)
    tokens = _tokens(rng, words, parallel)
    correct = rng.random() < (0.8 if parallel else 0.5)
    critical = max(tokens["positions"]) + 1 - tokens["num_prompt"]
    return make_sample(
        id, k, mode=mode, response=text, correct=correct, answer="7" if correct else "8", question=f"What is {id}?",
        num_generated=num_tokens, critical_path=critical, num_blocks=int(parallel), seconds=num_tokens / 90,
        tokens=tokens, reason="" if correct else "'8' is not '7'",
    )  # fmt: skip


def _tokens(rng: random.Random, words: list[str], parallel: bool) -> dict[str, Any]:
    num, prompt = len(words), 12
    quarter = num // 4 if parallel else 0
    ends, total = [], 0
    for word in words:
        total += len(word)
        ends.append(total)
    branches = [{"lineage": [], "label": None, "parent": None, "num_tokens": num - 2 * quarter, "ended_by": ""}]
    if not parallel:
        nodes, positions, owner = [[0, prompt + num, 0, []]], list(range(prompt, prompt + num)), [0] * num
    else:
        a, b, c = prompt + quarter, prompt + 2 * quarter, prompt + 3 * quarter
        nodes = [[0, a, 0, []], [a, b, a, [[0, a]]], [b, c, a, [[0, a]]], [c, prompt + num, b, [[0, c]]]]
        positions = [node[2] + i - node[0] for node in nodes for i in range(node[0], node[1]) if i >= prompt]
        owner = [0] * quarter + [1] * quarter + [2] * quarter + [0] * (num - 3 * quarter)
        branches += [
            {"lineage": [0, k], "label": str(k + 1), "parent": 0, "num_tokens": quarter, "ended_by": "end_path"}
            for k in range(2)
        ]
    return {
        "num_prompt": prompt,
        "ends": ends,
        "branches": branches,
        "token_branches": owner,
        "positions": positions,
        "logprobs": [None if rng.random() < 0.02 else -round(rng.expovariate(3), 4) for _ in words],
        "passes": [position - prompt + 1 for position in positions],
        "nodes": nodes,
        "scheme": "isolated",
    }


def hostile_run() -> tuple[dict, dict, list[Sample]]:
    """(header, results, samples) with an attack in every text."""
    attacked = make_sample(
        HOSTILE, task=HOSTILE, question=HOSTILE, reference=HOSTILE, answer=HOSTILE, response=f"<Think>{HOSTILE}",
        reason=HOSTILE, problems=[HOSTILE], correct=None, finish_reason=HOSTILE, meta={HOSTILE: HOSTILE},
    )  # fmt: skip
    other = make_sample("plain", task=HOSTILE, mode="sequential", correct=None, answer="\ud800 lone", reason="r")
    header = {**HEADER, "command": HOSTILE, "checkpoint": {"path": HOSTILE}, HOSTILE: {HOSTILE: [HOSTILE]}}
    samples = [attacked, other]
    return header, make_results(samples, EvaluationConfig()), samples
