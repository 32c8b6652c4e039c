"""What a run leaves: traces to train on, what was rejected and why, and what every stage said."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

from mvtrain.curate.journal import Journal
from mvtrain.folders import whole_file
from mvtrain.grammar import Trace, parse
from mvtrain.prompt import response_text

TRACES, REJECTED, STAGES = "traces.jsonl", "rejected.jsonl", "stages.jsonl"


class Statistics(Protocol):
    """What gathers lengths and parallelism of traces."""

    def add(self, text: str, trace: Trace) -> None: ...

    def as_dict(self) -> dict[str, Any]: ...


@dataclass
class Summary:
    """Of all finished records."""

    num_accepted: int = 0
    num_verified: int = 0
    """Of the accepted ones, those whose answer was found equal to a reference."""
    num_repeated: int = 0
    """Accepted ones with the question and the chain of an earlier one."""
    rejections: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(stage, kind of the first complaint) -> records."""
    distances: list[float] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def num_rejected(self) -> int:
        return sum(self.rejections.values())

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.distances)
        return {
            "num_accepted": self.num_accepted,
            "num_verified": self.num_verified,
            "num_repeated": self.num_repeated,
            "num_rejected": self.num_rejected,
            "rejections": [
                {"stage": stage, "kind": kind, "records": count}
                for (stage, kind), count in sorted(self.rejections.items(), key=lambda item: (-item[1], item[0]))
            ],
            "distance": {"median": ordered[len(ordered) // 2], "max": ordered[-1]} if ordered else None,
            "statistics": self.statistics,
        }


def write_outputs(journal: Journal, folder: Path, statistics: Statistics) -> Summary:
    """The three files, in the order of the input; each appears whole or not at all."""
    summary = Summary()
    seen: set[bytes] = set()
    with ExitStack() as stack:
        traces, rejected, stages = (
            stack.enter_context(whole_file(folder / name)) for name in (TRACES, REJECTED, STAGES)
        )
        for row in journal.rows():
            if row["status"] == "accepted":
                _write(traces, trace_row(row))
                summary.num_accepted += 1
                summary.num_verified += row["verified"] is True
                summary.distances.append(row["distance"])
                summary.num_repeated += _is_repeated(row["source"], seen)
                statistics.add(row["trace"], parse(row["trace"]))
            else:
                _write(rejected, rejected_row(row))
                summary.rejections[row["stage"], row["complaints"][0]["kind"]] += 1
            names = ("status", "stage", "complaints", "distance", "stages")
            _write(stages, {"id": row["source"]["id"], "row": row["number"] + 1, **{name: row[name] for name in names}})
    summary.statistics = statistics.as_dict()
    return summary


def _is_repeated(source: Mapping[str, Any], seen: set[bytes]) -> bool:
    text = json.dumps([source["question"], source["chain"]])
    digest = hashlib.sha256(text.encode()).digest()[:16]
    was_there = digest in seen
    seen.add(digest)
    return was_there


def trace_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The public columns, in both forms, and the plain `question` and `response`."""
    source = row["source"]
    return {
        "id": source["id"],
        "question": source["question"],
        "response": response_text(row["trace"], source["answer"]),
        "deepseek_thinking_trajectory_parallel": row["trace"],
        "deepseek_thinking_trajectory": source["chain"],
        "deepseek_attempt": source["answer"],
        "answer": source["reference"],
        "answer_verified": row["verified"] is True,
        "distance": round(row["distance"], 4),
    }


def rejected_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What was understood of the row, why it is rejected, and the row itself with all its columns."""
    source = row["source"]
    return {
        "id": source["id"],
        "row": row["number"] + 1,
        "stage": row["stage"],
        "reasons": [complaint["text"] for complaint in row["complaints"]],
        "kinds": sorted({complaint["kind"] for complaint in row["complaints"]}),
        "question": source["question"],
        "deepseek_thinking_trajectory": source["chain"],
        "deepseek_attempt": source["answer"],
        "answer": source["reference"],
        "source_row": _finite(source["row"]),
    }


def _finite(value: Any) -> Any:
    """Python reads and writes NaN in JSON; nobody else reads it."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(stream: TextIO, row: Mapping[str, Any]) -> None:
    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
