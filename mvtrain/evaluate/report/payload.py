"""What the page carries of every sample, within a number of bytes: rows of the table, and records for the viewer.

The rows are columns of one packed object, so that tens of thousands of samples stay small. Every record is packed on
its own and unpacked when it is opened. Where not everything fits, details per token go first, then responses, then
samples, in `order_of_keeping` from its end.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mvtrain.evaluate.pages import pack
from mvtrain.evaluate.records import MODES, Sample
from mvtrain.evaluate.report.compact import compact_tokens

_ANSWER_LENGTH = 160
_QUESTION_LENGTH = 240
_REASON_LENGTH = 240
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_QUOTED = "!'()*"  # by encodeURIComponent, with which the page compares
_PER_RECORD = 4  # quotes and comma of one packed record in the JSON list, and the digit of its level


@dataclass(frozen=True)
class Payload:
    """`index` is packed, and `records[i]` is the packed record of row i, or empty where its response was left out."""

    index: str
    records: list[str]
    num_samples: int
    """That the run has; the page has `len(records)` of them."""
    levels: str
    """A digit a record: 0 nothing, 1 the response, 2 details per token as well."""
    num_tokens_given: int
    """Samples that came with details per token."""


def order_of_keeping(samples: Sequence[Sample]) -> list[int]:
    """Indices of samples, those to keep longest first.

    The main run comes before answers that were forced at a budget, the first sample of every problem before the second
    ones, and within such a round problems from all over a task before their neighbours.
    """
    places: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for sample in samples:
        problems = places[sample.task, sample.mode]
        problems.setdefault(sample.id, len(problems))

    def key(index: int) -> tuple[bool, int, float, int]:
        sample = samples[index]
        spread = _spread(places[sample.task, sample.mode][sample.id])
        return sample.budget is not None, sample.sample, spread, index

    return sorted(range(len(samples)), key=key)


def _spread(place: int) -> float:
    """The place's bits behind the binary point in reverse: 0, 1/2, 1/4, 3/4, ..., after van der Corput.

    Taken modulo 1,024 problems, so that a cut leaves an even choice of the problems before it.
    """
    return int(f"{place % 1024:010b}"[::-1], 2) / 1024


def build_payload(samples: Sequence[Sample], max_bytes: int) -> Payload:
    """The rows and records of as many samples as fit into `max_bytes`, responses and details per token included.

    A sample whose details do not fit is passed over for later, shorter ones; the same holds for responses.
    """
    order = order_of_keeping(samples)
    kept, index = _fit_index(samples, order, max_bytes)
    left = max_bytes - len(index) - len(kept) * _PER_RECORD
    records = dict.fromkeys(kept, "")
    for i in kept:
        text = pack(viewer_record(samples[i], with_tokens=False))
        if len(text) <= left:
            records[i], left = text, left - len(text)
    levels = {i: "1" if record else "0" for i, record in records.items()}
    for i in kept:
        if samples[i].tokens is None or not records[i]:
            continue
        whole = pack(viewer_record(samples[i], with_tokens=True))
        if len(whole) - len(records[i]) <= left:
            left -= len(whole) - len(records[i])
            records[i], levels[i] = whole, "2"
    return Payload(
        index=index,
        records=[records[i] for i in sorted(kept)],
        num_samples=len(samples),
        levels="".join(levels[i] for i in sorted(kept)),
        num_tokens_given=sum(sample.tokens is not None for sample in samples),
    )


def _fit_index(samples: Sequence[Sample], order: list[int], max_bytes: int) -> tuple[list[int], str]:
    """The samples whose rows fit, in the order of keeping, and their packed rows. A quarter goes at every attempt."""
    kept = list(order)
    while True:
        index = pack(index_columns([samples[i] for i in sorted(kept)]))
        if len(index) + len(kept) * _PER_RECORD <= max_bytes or not kept:
            return kept, index
        kept = kept[: len(kept) * 3 // 4]


def index_columns(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """What the table needs, one list a column. Names stand once in `tasks`, `modes` and `problems` and are numbers."""
    tasks = list(dict.fromkeys(s.task for s in samples))
    modes = list(dict.fromkeys(s.mode for s in samples))
    problems = {key: place for place, key in enumerate(dict.fromkeys((s.task, s.id) for s in samples))}
    first = {}
    for sample in samples:
        first.setdefault((sample.task, sample.id), sample)
    return {
        "tasks": tasks,
        "modes": sorted(modes, key=mode_place),
        "problems": [
            [tasks.index(task), name, _cut(first[task, name].question, _QUESTION_LENGTH)] for task, name in problems
        ],
        "problem": [problems[s.task, s.id] for s in samples],
        "mode": [sorted(modes, key=mode_place).index(s.mode) for s in samples],
        "sample": [s.sample for s in samples],
        "budget": [s.budget for s in samples],
        "correct": [s.correct for s in samples],
        "answer": [None if s.answer is None else _cut(s.answer, _ANSWER_LENGTH) for s in samples],
        "reference": [_cut(s.reference, _ANSWER_LENGTH) for s in samples],
        "reason": [_cut(s.reason, _REASON_LENGTH) for s in samples],
        "finish": [s.finish_reason for s in samples],
        "well_formed": [s.well_formed for s in samples],
        "blocks": [s.num_blocks for s in samples],
        "tokens": [s.num_generated for s in samples],
        "critical_path": [s.critical_path for s in samples],
        "seconds": [_finite(s.seconds) for s in samples],
    }


def mode_place(mode: str) -> tuple[int, str]:
    """Sort key: the modes in the order in which the project names them, others behind."""
    known = list(MODES)
    return (known.index(mode) if mode in known else len(known), mode)


def viewer_record(sample: Sample, with_tokens: bool) -> dict[str, Any]:
    """What the trace viewer shows of a sample; `tokens`, where they are kept, in the form of `compact_tokens`."""
    title = f"{sample.task} / {sample.id} / {sample.mode} / sample {sample.sample}"
    if sample.budget is not None:
        title += f" / forced at {sample.budget} tokens"
    return {
        "title": title,
        "question": sample.question,
        "response": sample.response,
        "problems": list(sample.problems),
        "figures": _figures(sample),
        "tokens": compact_tokens(sample.tokens) if with_tokens and sample.tokens is not None else None,
    }


def _figures(sample: Sample) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "answer": sample.answer if sample.answer is not None else "none",
        "reference": sample.reference,
        "reason": sample.reason,
        "tokens": sample.num_generated,
        "critical path": sample.critical_path,
        "parallelism": round(sample.parallelism, 3),
        "blocks in parallel": sample.num_blocks,
        "ended by": sample.finish_reason,
        "forced tokens": sample.num_forced,
        "forced closes": sample.num_forced_closes,
        "prompt tokens": sample.num_prompt,
        "seconds": _finite(sample.seconds, 3),
        "seconds to first token": _finite(sample.seconds_to_first_token, 3),
        "seed": sample.seed,
    }
    figures |= {str(name): str(value) for name, value in sample.meta.items() if name not in figures}
    return {name: value for name, value in figures.items() if value not in ("", None)}


def ungradable_rows(samples: Sequence[Sample]) -> list[Sample]:
    """Samples whose answer could not be compared, by task, problem, mode and sample."""
    rows = [sample for sample in samples if sample.correct is None]
    return sorted(rows, key=lambda s: (s.task, s.id, mode_place(s.mode), s.sample, s.budget or 0))


def count_reasons(samples: Sequence[Sample]) -> dict[str, int]:
    """How the samples were graded: right, wrong, without an answer, which counts as wrong, and ungradable."""
    kinds = Counter(_grading(sample) for sample in samples)
    return {name: kinds[name] for name in ("right", "wrong", "without an answer", "ungradable")}


def _grading(sample: Sample) -> str:
    if sample.correct is None:
        return "ungradable"
    return "right" if sample.correct else "without an answer" if sample.answer is None else "wrong"


def sample_link(sample: Sample) -> str:
    """The fragment of the page's address that opens a sample."""
    parts: list[Any] = [sample.task, sample.mode, sample.id, sample.sample]
    if sample.budget is not None:
        parts.append(sample.budget)
    path = "/".join(quote(_writable(str(part)), safe=_NOT_QUOTED) for part in parts)
    return f"#sample={quote(path, safe='')}"


def _writable(text: str) -> str:
    """A lone surrogate, which JSON lines can hold, has no UTF-8; browsers put the same character in its place."""
    return _LONE_SURROGATE.sub("\ufffd", text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _finite(value: float | None, digits: int = 4) -> float | None:
    return round(value, digits) if value is not None and math.isfinite(value) else None


def describe_payload(payload: Payload, max_bytes: int) -> Mapping[str, str]:
    """Sentences for the page: `tokens` says how many samples have details, `missing` what was left out, or is empty."""
    shown, with_tokens, without_text = len(payload.records), payload.levels.count("2"), payload.levels.count("0")
    tokens = (
        f"{with_tokens:,} of {payload.num_samples:,} samples can be looked at token by token"
        f" ({payload.num_tokens_given:,} were recorded that way)."
        if payload.num_tokens_given
        else "The run recorded no details per token: responses are shown as text."
    )
    missing = ""
    if without_text:
        missing += f" The responses of {without_text:,} samples are left out."
    if shown < payload.num_samples:
        missing += f" {payload.num_samples - shown:,} samples are not in the table at all."
    if missing or with_tokens < payload.num_tokens_given:
        missing += (
            f" The page is kept under {max_bytes / 1e6:,.0f} MB: first samples of problems from all over a task stay"
            " longest. The samples file of the run has everything."
        )
    return {"tokens": tokens, "missing": missing.strip()}
