"""A row of a data set -> a source: which column holds what, and rows that reason in `<think>` within the response."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mvtrain.curate.records import Source

COLUMNS: dict[str, tuple[str, ...]] = {
    "question": ("question", "problem", "prompt"),
    "chain": (
        "deepseek_thinking_trajectory", "deepseek_thinking_trajectory_sequential", "thinking_trajectory", "chain",
        "reasoning", "reasoning_content",
    ),
    "answer": ("deepseek_attempt", "attempt", "model_answer"),
    "reference": ("answer", "reference", "solution"),
}  # fmt: skip
"""What is looked for where no column is named, the preferred one first."""
RESPONSE = "response"
"""A whole response, where there is no column with a chain: `<think>`, the chain, `</think>`, the answer."""
LONGEST_SOLUTION = 30
"""Characters of a `solution` that is an answer; a longer one is worked out, and only its box can be compared."""

_RESPONSE = re.compile(r"\A\s*(?:<think>)?(.*?)</think>(.*)\Z", re.DOTALL | re.IGNORECASE)
_THINK = re.compile(r"\A\s*<think>|</think>\s*\Z", re.IGNORECASE)


@dataclass(frozen=True)
class SourceColumns:
    """Names of columns; None: the first of `COLUMNS` that a row has."""

    question: str | None = None
    chain: str | None = None
    answer: str | None = None
    reference: str | None = None

    def read(self, where: str, number: int, fields: Mapping[str, Any], last_box: Any) -> Source:
        """The source of a row; what is missing is empty, and the record is then rejected for that.

        Args:
            number: of the row, from 0.
            last_box: takes the answer in a box out of a text.

        Raises ValueError where a column that was named is not there, or none that is known.
        """
        question = self._text(where, fields, "question")
        reference = self._text(where, fields, "reference", needed=False)
        if self.chain is None and not _first(fields, COLUMNS["chain"]) and RESPONSE in fields:
            chain, answer = _split_response(fields[RESPONSE])
        else:
            chain = _THINK.sub("", self._text(where, fields, "chain")).strip()
            answer = self._text(where, fields, "answer", needed=False)
        if last_box(reference) is not None:
            reference = last_box(reference)
        elif _first(fields, COLUMNS["reference"]) == "solution" and len(reference) > LONGEST_SOLUTION:
            reference = ""
        if not answer.strip() and (found := last_box(chain) or reference):
            answer = f"\\boxed{{{found}}}"
        id = fields.get("id", fields.get("unique_id"))
        id = str(id) if isinstance(id, (str, int)) and str(id) else f"row-{number + 1}"
        return Source(id, question.strip(), chain, answer.strip(), reference.strip() or None, where, row=fields)

    def _text(self, where: str, fields: Mapping[str, Any], what: str, needed: bool = True) -> str:
        named = getattr(self, what)
        name = named or _first(fields, COLUMNS[what])
        if name not in fields:
            if not needed and not named:
                return ""
            looked_for = named or ", ".join(COLUMNS[what])
            flag = f"--{what}-column"
            raise ValueError(
                f"{where}: no column {looked_for} for the {what}; name one with {flag}: {', '.join(fields)}"
            )
        value = fields[name]
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def _first(fields: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in fields), None)


def _split_response(response: Any) -> tuple[str, str]:
    match = _RESPONSE.match(response) if isinstance(response, str) else None
    return (match[1].strip(), match[2].strip()) if match else ("", "")
