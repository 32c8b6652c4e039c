"""What a finished request says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from mvtrain.engine.request import Request
from mvtrain.grammar import Trace, TraceError, parse
from mvtrain.layout import Layout, Node, Scheme, TagIds


@dataclass(frozen=True)
class BranchRecord:
    """The top level or a path."""

    lineage: tuple[int, ...]
    """(block, path, block, path, ...) from the top level down."""
    label: str | None
    parent: int | None
    """Which of the completion's branches it is a path of."""
    num_tokens: int
    """Its own, those of nested paths not counted."""
    ended_by: str
    """Of a path: "end_path" where the model closed it, else why the engine did: "end_of_text", "stop", "limit" (its
    budget), "parent" (the path around it ended) or "answer" (the answer did). Empty at the top level."""


@dataclass
class Completion:
    """The answer to one prompt. Token lists leave out the prompt and are in the order of the text."""

    text: str
    """With its tags, without the end-of-text token."""
    token_ids: list[int]
    position_ids: list[int]
    logprobs: list[float | None]
    """Of each token under the model at temperature 1; None where the engine forced the token."""
    finish_reason: str
    """"stop" (end of text, a stop token or a stop string), "length", "cancelled", or "error": the model's output
    was not a number."""
    trace: Trace | None
    """The parsed text, or None where it is not well formed."""
    problems: list[str]
    """What the engine could not follow, and the first thing wrong with the text's form."""
    num_generated: int
    num_forced: int
    """Tokens that the engine put in: openings of paths, `<Conclusion>`, and what closes paths and blocks."""
    num_forced_closes: int
    """Paths and blocks that the engine closed, since the model did not, or was over a budget."""
    answer_forced: bool
    """Whether a length limit was reached and the engine opened the answer (`answer_tokens`)."""
    critical_path: int
    """Tokens on the longest sequential chain."""
    num_path_tokens: list[int]
    """Tokens of every path that was generated in parallel, nested ones included, in the order in which they open."""
    num_passes: int
    """Forward passes that the request took part in."""
    num_preemptions: int
    """How often it lost its place in the cache and went through the model again."""
    seconds: float
    """From its admission to its last token."""
    seconds_to_first_token: float
    """From the time when it was added; waiting in line counts."""
    sample: int
    """Which of the `n` answers to its prompt it is."""
    prompt_ids: list[int] = field(repr=False)
    plain_tags: frozenset[int] = field(repr=False)
    """Indices in `token_ids` of tags that had no effect."""
    closing_tags: tuple[int, ...] = field(repr=False)
    """The tags that would close the block that is open at the end."""
    tags: TagIds = field(repr=False)
    branches: list[BranchRecord] = field(repr=False)
    """The top level and every path, in the order of the text."""
    token_branches: list[int] = field(repr=False)
    """For every token, which of `branches` it belongs to."""
    passes: list[int] = field(repr=False)
    """For every token, after which of the request's passes it was there: who waited for whom."""
    top_logprobs: list[tuple[tuple[int, float], ...]] = field(repr=False)
    """For every token, (token, log-probability) of the most probable ones, where `num_logprobs` asked for them."""
    scheme: Scheme = "isolated"

    @property
    def parallelism(self) -> float:
        """Generated tokens per token of the critical path: 1.0 where nothing ran in parallel."""
        return self.num_generated / self.critical_path if self.critical_path else 1.0

    @cached_property
    def layout_ids(self) -> list[int]:
        """Prompt and answer, with -1 for the prompt's tokens and for tags without effect: what a layout looks at."""
        answer = [-1 if i in self.plain_tags else id for i, id in enumerate(self.token_ids)]
        return [-1] * len(self.prompt_ids) + answer

    @cached_property
    def layout(self) -> Layout:
        """The layout of prompt and answer as training would read them, tags without effect taken as text.

        This is worked out from the tokens alone, so that it can be held against what the engine did.
        """
        ids = self.layout_ids
        closed = Layout.from_ids([*ids, *self.closing_tags], self.tags, self.scheme)
        nodes = [Node(n.start, min(n.end, len(ids)), n.position, n.sees) for n in closed.nodes if n.start < len(ids)]
        return Layout(tuple(nodes), ((0, len(ids)),), self.scheme)

    def visible_to(self, index: int) -> tuple[tuple[int, int], ...]:
        """Ranges [a, b) of tokens, counted from the start of the prompt, that token `index` of the answer sees.

        The last one ends with the token itself.
        """
        at = len(self.prompt_ids) + index
        node = next(node for node in self.layout.nodes if node.start <= at < node.end)
        return (*node.sees, (node.start, at + 1))

    def as_dict(self, tokens: bool = False) -> dict[str, Any]:
        """For JSON: the answer and its figures; with `tokens` also the trace as data.

        That is: for every token its id, branch, position, log-probability and pass; the branches; and `nodes`, runs of
        tokens [start, end) counted from the start of the prompt, which see the ranges `sees` and themselves causally.
        """
        record = {name: getattr(self, name) for name in _FIGURES}
        if tokens:
            record |= {name: getattr(self, name) for name in _TOKENS}
            record["branches"] = [asdict(branch) for branch in self.branches]
            record["nodes"] = [node._asdict() for node in self.layout.nodes]
            record["scheme"] = self.scheme
        return record


_FIGURES = (
    "text", "finish_reason", "problems", "num_generated", "critical_path", "parallelism", "num_path_tokens",
    "num_forced", "num_forced_closes", "answer_forced", "num_passes", "num_preemptions", "seconds",
    "seconds_to_first_token", "sample",
)  # fmt: skip
_TOKENS = ("prompt_ids", "token_ids", "token_branches", "position_ids", "logprobs", "top_logprobs", "passes")


def complete(request: Request) -> Completion:
    """The completion of a finished request."""
    places = list(request.root.in_text_order())
    token_ids = [branch.tokens[i] for branch, i in places]
    position_ids = [branch.positions[i] for branch, i in places]
    logprobs = [branch.logprobs[i] for branch, i in places]
    markup, branches = request.markup, list(request.root.walk())
    number = {branch: k for k, branch in enumerate(branches)}
    text = _text(request, token_ids)
    trace, problems = _parse(text, request)
    return Completion(
        text=text,
        token_ids=token_ids,
        position_ids=position_ids,
        logprobs=logprobs,
        finish_reason=request.finish_reason,
        trace=trace,
        problems=problems,
        num_generated=len(token_ids),
        num_forced=logprobs.count(None),
        num_forced_closes=request.num_forced_closes,
        answer_forced=request.answer_forced,
        critical_path=max(position_ids, default=len(request.prompt) - 1) + 1 - len(request.prompt),
        num_path_tokens=_path_tokens(request),
        num_passes=request.num_passes,
        num_preemptions=request.num_preemptions,
        seconds=request.ended - request.started if request.started else 0.0,
        seconds_to_first_token=request.first_token - request.added if request.first_token else 0.0,
        sample=request.sample,
        prompt_ids=request.prompt,
        plain_tags=frozenset(k for k, (branch, i) in enumerate(places) if i in branch.plain),
        closing_tags=tuple(request.open_block_tags),
        tags=markup.tags,
        branches=[BranchRecord(b.lineage, b.label, number.get(b.parent), len(b.tokens), b.ended_by) for b in branches],
        token_branches=[number[branch] for branch, _ in places],
        passes=[branch.passes[i] for branch, i in places],
        top_logprobs=[branch.top_logprobs.get(i, ()) for branch, i in places],
        scheme=request.scheme,
    )


def _text(request: Request, token_ids: list[int]) -> str:
    """Without the token or the string that ended it."""
    ending = request.params.stop_token_ids + tuple(request.markup.eos_ids)
    if request.finish_reason == "stop" and token_ids[-1] in ending and not request.num_cut:
        token_ids = token_ids[:-1]
    text = request.markup.decode(token_ids)
    return text[: len(text) - request.num_cut]


def _parse(text: str, request: Request) -> tuple[Trace | None, list[str]]:
    problems = list(request.problems)
    if request.num_more_problems:
        problems.append(f"and {request.num_more_problems} more")
    try:
        return parse(text), problems
    except TraceError as error:
        return None, [*problems, str(error)]


def _path_tokens(request: Request) -> list[int]:
    """Nested tokens count for every path around them."""
    totals = {branch: len(branch.tokens) for branch in request.branches}
    for branch in reversed(request.branches):  # children come after their parents
        if branch.parent is not None:
            totals[branch.parent] += totals[branch]
    return [totals[branch] for branch in request.root.walk() if branch.parent is not None]
