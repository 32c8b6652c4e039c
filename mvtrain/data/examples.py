"""Records -> examples: token ids, and where the assistant's turn begins.

The prompt's ids come from `mvtrain.prompt`, as they do in generation. The assistant's turn is tokenised by itself, as a
model writes it, and ends in the token with which the chat template ends a turn. No example is ever cut.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from mvtrain.data.curriculum import Kind
from mvtrain.data.sources import Record, RowError
from mvtrain.grammar import TraceError, parse, render
from mvtrain.layout import TAGS, Layout, LayoutError, TagIds
from mvtrain.prompt import prompt_ids, refuse_tags, response_text

BATCH_SIZE = 256
"""Records that are tokenised at a time."""

_TAG = re.compile("|".join(TAGS))
_LOWER_CASE_THINK = re.compile(r"<(/?)think>")
_NUMBER = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True, eq=False)
class Example:
    """One document to train on: a prompt and the assistant's turn."""

    input_ids: np.ndarray
    """(T,) int32."""
    prompt_length: int
    """Tokens before the assistant's turn; every token from here on is a target, the end of the turn included."""
    kind: Kind
    where: str
    """File and row, for instance `traces.jsonl row 14`."""

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_targets(self) -> int:
        """Tokens that a loss counts. The first token of a document has nothing to be predicted from."""
        return self.num_tokens - max(self.prompt_length, 1)


@dataclass
class Report:
    """What became of the rows of a source."""

    num_kept: int = 0
    num_tokens: int = 0
    num_targets: int = 0
    longest: int = 0
    """Tokens of the longest example that was kept."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Examples that were kept, by kind."""
    num_dropped: int = 0
    """Rows longer than the context."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Malformed rows by reason."""
    problems: list[str] = field(default_factory=list)
    """One line with file and row for every row that was dropped or skipped."""

    @property
    def num_skipped(self) -> int:
        return sum(self.skipped.values())

    @property
    def num_rows(self) -> int:
        return self.num_kept + self.num_dropped + self.num_skipped

    def summary(self) -> str:
        """A few lines to print."""
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.num_kept:,} of {self.num_rows:,} rows kept" + (f" ({kinds})" if kinds else ""),
            f"{self.num_tokens:,} tokens, {self.num_targets:,} targets, longest {self.longest:,}",
        ]
        if self.num_dropped:
            lines.append(f"{self.num_dropped:,} dropped: longer than the context")
        lines += [f"{count:,} skipped: {reason}" for reason, count in self.skipped.most_common()]
        return "\n".join(lines)

    def _keep(self, example: Example) -> None:
        self.num_kept += 1
        self.num_tokens += example.num_tokens
        self.num_targets += example.num_targets
        self.longest = max(self.longest, example.num_tokens)
        self.kinds[example.kind] += 1


def build_examples(
    records: Iterable[Record | RowError],
    tokenizer: Any,
    *,
    context: int = 32768,
    malformed: Literal["error", "skip"] = "error",
    too_long: Literal["drop", "error"] = "drop",
    canonical: bool = False,
    progress: bool | None = None,
) -> tuple[list[Example], Report]:
    """Check and tokenise records.

    Args:
        records: as `read_records` yields them; with `bad_rows="yield"`, its errors count as malformed rows.
        tokenizer: one that knows the tags as single tokens.
        context: tokens an example may have.
        malformed: what to do with a row that is no well-formed trace: stop, or skip and count it.
        too_long: what to do with an example of more than `context` tokens: drop and count it, or stop.
        canonical: write traces anew in canonical form; by default only `<think>` becomes `<Think>`.
        progress: show a bar; by default if standard error is a terminal.

    Returns:
        The examples in the order of their records, and what became of each row.

    Raises:
        RowError: names file and row, and for a faulty trace line and column of the assistant's turn.
        ValueError: an unknown policy, or a tokenizer without the tags or without an end of turn.
    """
    _check_choice("malformed", malformed, ("error", "skip"))
    _check_choice("too_long", too_long, ("drop", "error"))
    encoder = _Encoder(tokenizer, canonical)
    examples: list[Example] = []
    report = Report()
    with _progress_bar(progress, len(records) if isinstance(records, Sized) else None) as advance:
        for batch in _batches(records, BATCH_SIZE):
            for result in encoder.encode(batch):
                if isinstance(result, RowError):
                    if malformed == "error":
                        raise result
                    report.skipped[result.reason] += 1
                    report.problems.append(str(result).split("\n", 1)[0])
                elif result.num_tokens > context:
                    problem = f"{result.where}: {result.num_tokens} tokens, the context holds {context}"
                    if too_long == "error":
                        raise RowError(result.where, problem.partition(": ")[2], "longer than the context")
                    report.num_dropped += 1
                    report.problems.append(problem)
                else:
                    examples.append(result)
                    report._keep(result)
            advance(len(batch))
    return examples, report


def end_of_turn_ids(tokenizer: Any) -> list[int]:
    """What the chat template writes after an assistant's text, without white space; else the end-of-text token.

    For ChatML that is `<|im_end|>` alone. Never empty.

    Raises:
        ValueError: the tokenizer has neither.
    """
    if getattr(tokenizer, "chat_template", None):
        mark = "THE-ASSISTANT-SAYS-THIS"
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": mark}]
        end = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(mark)[2].strip()
        if end:
            return tokenizer(end, add_special_tokens=False)["input_ids"]
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has neither a chat template that ends a turn nor an eos_token")
    return [tokenizer.eos_token_id]


class _Encoder:
    """One tokenizer, with what is looked up once."""

    def __init__(self, tokenizer: Any, canonical: bool) -> None:
        self.tokenizer = tokenizer
        self.canonical = canonical
        self.tags = TagIds.from_tokenizer(tokenizer)
        self.tag_id_of = dict(zip(TAGS, self.tags.as_tuple(), strict=True))
        self.end_of_turn = end_of_turn_ids(tokenizer)
        self.end_ids = [id for id in self.end_of_turn if id in tokenizer.all_special_ids]

    def encode(self, records: Sequence[Record | RowError]) -> Iterator[Example | RowError]:
        """An example, or what is wrong, for each record in turn."""
        responses = [_outcome(self._response, record) for record in records]
        texts = [response for response in responses if isinstance(response, str)]
        ids = iter(self._tokenize(texts) if texts else [])
        for record, response in zip(records, responses, strict=True):
            if isinstance(response, RowError):
                yield response
            else:
                yield _outcome(self._example, record, response, next(ids))

    def _response(self, record: Record | RowError) -> str:
        """The assistant's turn as it will be trained on, checked."""
        if isinstance(record, RowError):
            raise record
        text = record.trajectory
        if record.answer is not None:
            text = response_text(text.strip(), record.answer)
        text = _LOWER_CASE_THINK.sub(r"<\1Think>", text)
        try:
            trace = parse(text)
        except TraceError as error:
            # Labels and counts differ from row to row; without them, faults of one sort are counted together.
            raise RowError(record.where, f"{error}\n{error.excerpt}", _NUMBER.sub("N", error.message)) from None
        return render(trace) if self.canonical else text

    def _example(self, record: Record, response: str, response_ids: list[int]) -> Example:
        prompt = self._prompt_ids(record)
        ids_T = np.array([*prompt, *response_ids, *self.end_of_turn], dtype=np.int32)
        response_T = ids_T[len(prompt) : -len(self.end_of_turn)]
        if np.isin(response_T, self.end_ids).any():
            end = self.tokenizer.decode(self.end_of_turn)
            raise RowError(
                record.where, f"the assistant's turn holds {end}, which ends a turn", "end of turn in the text"
            )
        tags_of_ids = response_T[np.isin(response_T, self.tags.as_tuple())].tolist()
        if tags_of_ids != [self.tag_id_of[tag] for tag in _TAG.findall(response)]:
            raise ValueError(f"{record.where}: the tokenizer does not turn each tag of the text into its one token")
        try:
            Layout.from_ids(ids_T, self.tags)
        except LayoutError as error:
            raise RowError(record.where, f"tags in the prompt: {error}", "tags in the prompt") from None
        return Example(ids_T, len(prompt), record.kind, record.where)

    def _prompt_ids(self, record: Record) -> list[int]:
        if record.prompt is None:
            try:
                refuse_tags(record.question)
            except ValueError as error:
                raise RowError(record.where, str(error), "tag in the question") from None
            return prompt_ids(self.tokenizer, record.question, record.kind == "parallel")
        if self._tokenize(["<|im_end|>"])[0] != self.end_of_turn:
            end = self.tokenizer.decode(self.end_of_turn)
            raise ValueError(f"{record.where}: column 'text' is ChatML, but the tokenizer's turns end in {end!r}")
        return self._tokenize([record.prompt])[0]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _outcome(function: Any, *arguments: Any) -> Any:
    """What the function returns, or the RowError it raises."""
    try:
        return function(*arguments)
    except RowError as error:
        return error


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def _progress_bar(show: bool | None, total: int | None) -> Iterator[Any]:
    """Yields a function that is told how many more rows are done."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("reading traces"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(choices)}, not {value!r}")
