"""`mvtrain prepare --mixture`: the eight phases of the published recipe as one file, in the order of reading."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mvtrain.commands.prepare_files import (
    RejectedRows,
    checked_output,
    progress,
    rejected_path,
    rejected_rows,
)
from mvtrain.commands.prepare_overlap import OVERLAP, row_text, search_for
from mvtrain.data.curriculum import Kind, phases
from mvtrain.data.sources import Record, RowError, read_records
from mvtrain.folders import whole_file
from mvtrain.grammar import TraceError, parse
from mvtrain.overlap import OverlapSearch, describe
from mvtrain.prompt import prompt_text, refuse_tags, response_text

_LOWER_CASE_THINK = re.compile(r"<(/?)think>")
_NUMBER = re.compile(r"\d+(\.\d+)*")

AsChat = Callable[[str, str, bool], str]
"""(question, response, parallel) -> the conversation as one text."""


@dataclass
class Summary:
    out: str
    seed: int
    sequential: int = 0
    """Rows of each set."""
    parallel: int = 0
    written: int = 0
    phases: list[dict[str, int]] = field(default_factory=list)
    """Rows of each phase by kind."""
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    overlapping: int = 0


def run_mixture(args: argparse.Namespace) -> int:
    """Write the mixed set of one or two files."""
    sources = args.mixture
    if len(sources) > 2:
        raise ValueError(f"--mixture reads two files, or one that has both columns; {len(sources)} are given")
    out = checked_output(args.out, sources)
    screen = search_for(args.overlap, args.data_dir)
    mixture = _Mixture(args, screen, _chat_writer(args.chat) if args.chat else None, Summary(str(out), args.seed))
    with ExitStack() as stack:
        rejected = stack.enter_context(rejected_rows(out))
        file = stack.enter_context(whole_file(out))
        spool = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        mixture.write(sources[0], sources[-1], file, rejected, spool)
    _print(mixture.summary, out, screen, args.json)
    return 0


class _Mixture:
    """Every row is prepared once and kept on disk; then rows are copied in the order of the phases."""

    def __init__(
        self, args: argparse.Namespace, screen: OverlapSearch | None, as_chat: AsChat | None, summary: Summary
    ) -> None:
        self.args, self.screen, self.as_chat, self.summary = args, screen, as_chat, summary

    def write(self, sequential: str, parallel: str, file: TextIO, rejected: RejectedRows, spool: BinaryIO) -> None:
        places: dict[Kind, array] = {
            "sequential": self._spool(sequential, "sequential", rejected, spool),
            "parallel": self._spool(parallel, "parallel", rejected, spool),
        }
        self.summary.sequential, self.summary.parallel = len(places["sequential"]), len(places["parallel"])
        with progress(f"writing {self.summary.out}") as advance:
            order = phases(self.summary.sequential, self.summary.parallel, self.args.seed)
            for number, phase in enumerate(order, 1):
                for kind, index in phase:
                    spool.seek(places[kind][index])
                    line = spool.readline().decode("utf-8")
                    file.write(f'{{"phase": {number}, {line[1:]}')  # a JSON object; its phase comes first
                    self.summary.written += 1
                    advance()
                self.summary.phases.append(dict(Counter(kind for kind, _ in phase)))

    def _spool(self, source: str, kind: Kind, rejected: RejectedRows, spool: BinaryIO) -> array:
        """Write the rows of a set to the spool; their places in it."""
        places = array("q")
        with progress(f"reading {source}") as advance:
            for record, row in self._rows(source, kind):
                reasons = [(row.reason, row.message)] if isinstance(row, RowError) else self._overlaps(record, row)
                if reasons:
                    self._reject(record, kind, reasons, rejected)
                else:
                    places.append(spool.seek(0, 2))
                    spool.write((json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8"))
                advance()
        return places

    def _rows(self, source: str, kind: Kind) -> Iterator[tuple[Record | RowError, dict[str, str] | RowError]]:
        skip = self.args.malformed == "skip"
        for record in read_records(source, kind, bad_rows="yield" if skip else "raise"):
            try:
                yield record, self._row(record)
            except RowError as error:
                if not skip:
                    raise
                yield record, error

    def _row(self, record: Record | RowError) -> dict[str, str]:
        """The plain columns, the response as it is trained on. Raises RowError."""
        if isinstance(record, RowError):
            raise record
        if record.prompt is not None:
            raise RowError(
                record.where, "column 'text' is ready ChatML; the mixture needs a question and a trajectory",
                "ready ChatML",
            )  # fmt: skip
        response = record.trajectory
        if record.answer is not None:
            response = response_text(response.strip(), record.answer)
        response = _LOWER_CASE_THINK.sub(r"<\1Think>", response)
        try:
            parse(response)
        except TraceError as error:
            # Labels and counts differ from row to row; without them, faults of one sort are counted together.
            raise RowError(record.where, f"{error}\n{error.excerpt}", _NUMBER.sub("N", error.message)) from None
        try:
            refuse_tags(record.question)
        except ValueError as error:
            raise RowError(record.where, str(error), "tag in the question") from None
        row = {"kind": record.kind, "question": record.question, "response": response}
        if any("\ud800" <= character <= "\udfff" for text in row.values() for character in text):
            raise RowError(record.where, "half of a surrogate pair; expected Unicode text", "no valid Unicode")
        if self.as_chat:
            if "<|im_" in record.question + response:
                raise RowError(record.where, "<|im_start|> or <|im_end|> in the text", "end of turn in the text")
            row["text"] = self.as_chat(record.question, response, record.kind == "parallel")
        return row

    def _overlaps(self, record: Record, row: dict[str, str]) -> list[tuple[str, str]]:
        plain = {"question": row["question"], "response": row["response"]}
        problems = self.screen.read(f"{record.where} ({record.kind})", row_text(plain)) if self.screen else []
        self.summary.overlapping += bool(problems)
        return [(OVERLAP, ", ".join(problems))] if problems and self.args.drop_overlap else []

    def _reject(
        self, record: Record | RowError, kind: Kind, reasons: list[tuple[str, str]], rejected: RejectedRows
    ) -> None:
        file, _, number = record.where.rpartition(" row ")
        fields = {} if isinstance(record, RowError) else {k: v for k, v in asdict(record).items() if k != "prompt"}
        rejected.add(file, int(number), reasons, {"kind": kind} | fields)
        self.summary.rejected += 1
        self.summary.reasons.update(reason for reason, _ in reasons)


def _chat_writer(folder: str) -> AsChat:
    """Conversations in a tokenizer's chat template. Raises ValueError for what is no such folder or template."""
    if not Path(folder).is_dir():
        raise ValueError(f"--chat {folder}: no such folder; give a folder with tokenizer files")
    from transformers import AutoTokenizer

    from mvtrain.data.examples import end_of_turn_ids

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    end = tokenizer.decode(end_of_turn_ids(tokenizer))
    if end != "<|im_end|>" or "<|im_start|>assistant\n" not in prompt_text(tokenizer, "?"):
        raise ValueError(
            f"--chat {folder}: its turns end in {end!r}; column 'text' is ChatML, which ends in <|im_end|>"
        )
    return lambda question, response, parallel: f"{prompt_text(tokenizer, question, parallel)}{response}{end}\n"


def _print(summary: Summary, out: Path, screen: OverlapSearch | None, as_json: bool) -> None:
    file = str(rejected_path(out)) if summary.rejected else None
    report = screen.report() if screen else None
    if as_json:
        result: dict[str, Any] = vars(summary) | {"rejected_file": file, "overlap": report and asdict(report)}
        print(json.dumps(result, ensure_ascii=False))
        return
    print(
        f"{summary.out}: {summary.written:,} rows of {summary.sequential:,} sequential and {summary.parallel:,} "
        f"parallel ones, seed {summary.seed}"
    )
    for number, counts in enumerate(summary.phases, 1):
        print(f"  phase {number}: {', '.join(f'{count:,} {kind}' for kind, count in sorted(counts.items()))}")
    if file:
        print(f"{file}: {summary.rejected:,} left out")
    for reason, count in summary.reasons.most_common():
        print(f"  {count:,} {reason}")
    if report:
        print(f"{describe(report)}\nrows that overlap: {summary.overlapping:,}")
