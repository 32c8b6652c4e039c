"""Token details made small: columns of numbers as differences and runs. `expand.js` turns them back.

A response of 800 tokens takes about 25 KB as JSON. Nearly every column of it grows by one from token to token, so that
its differences, written as runs, are a few numbers; log-probabilities are kept to three decimals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_DELTAS = ("ends",)
_RUNS = ("token_branches",)
_DELTA_RUNS = ("positions", "passes")
_THOUSANDTHS = ("logprobs",)


def compact_tokens(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """The small form of a dict of `records.token_details`. Columns are lists of int, or of float or None for logprobs.

    `deltas` holds the first value and then differences; `runs` value, count, value, count, ...; `delta_runs` the runs
    of the differences; `thousandths` the negated values times 1,000, rounded. What is none of these stays in `plain`.
    A log-probability that is no finite number becomes None.
    """
    encoders = {
        "deltas": (_DELTAS, _differences),
        "runs": (_RUNS, _runs),
        "delta_runs": (_DELTA_RUNS, lambda column: _runs(_differences(column))),
        "thousandths": (_THOUSANDTHS, lambda column: [_thousandth(value) for value in column]),
    }
    known = {name for names, _ in encoders.values() for name in names}
    compact: dict[str, Any] = {"plain": {name: value for name, value in tokens.items() if name not in known}}
    for kind, (names, encode) in encoders.items():
        compact[kind] = {name: encode(tokens[name]) for name in names if name in tokens}
    return compact


def rounded_tokens(tokens: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back from `compact_tokens`: the same dict with log-probabilities to three decimals."""
    rounded = dict(tokens)
    if "logprobs" in rounded:
        thousandths = [_thousandth(value) for value in rounded["logprobs"]]
        rounded["logprobs"] = [None if value is None else -value / 1000 for value in thousandths]
    return rounded


def _differences(column: Sequence[int]) -> list[int]:
    return [value - before for before, value in zip([0, *column], column, strict=False)]


def _runs(column: Sequence[int]) -> list[int]:
    runs: list[int] = []
    for value in column:
        if runs and runs[-2] == value:
            runs[-1] += 1
        else:
            runs += [value, 1]
    return runs


def _thousandth(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else round(-1000 * value)
