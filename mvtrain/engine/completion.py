"""What a finished request says."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from mvtrain.engine.request import Request
from mvtrain.grammar import Trace, TraceError, parse
from mvtrain.layout import Layout, Node, Scheme, TagIds


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
    """"stop" (end of text) or "length"."""
    trace: Trace | None
    """The parsed text, or None where it is not well formed."""
    problems: list[str]
    """What the engine could not follow, and the first thing wrong with the text's form."""
    num_generated: int
    num_forced: int
    critical_path: int
    """Tokens on the longest sequential chain."""
    num_path_tokens: list[int]
    """Tokens of every path that was generated in parallel, nested ones included, in the order in which they open."""
    num_passes: int
    """Forward passes that the request took part in."""
    seconds: float
    """From its first to its last pass."""
    prompt_ids: list[int] = field(repr=False)
    plain_tags: frozenset[int] = field(repr=False)
    """Indices in `token_ids` of tags that had no effect."""
    closing_tags: tuple[int, ...] = field(repr=False)
    """The tags that would close the block that is open at the end."""
    tags: TagIds = field(repr=False)
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


def complete(request: Request) -> Completion:
    """The completion of a finished request."""
    places = list(request.root.in_text_order())
    token_ids = [branch.tokens[i] for branch, i in places]
    position_ids = [branch.positions[i] for branch, i in places]
    logprobs = [branch.logprobs[i] for branch, i in places]
    markup, ended = request.markup, request.finish_reason == "stop"
    text = markup.decode(token_ids[:-1] if ended else token_ids)
    trace, problems = _parse(text, list(request.problems))
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
        critical_path=max(position_ids, default=len(request.prompt) - 1) + 1 - len(request.prompt),
        num_path_tokens=_path_tokens(request),
        num_passes=request.num_passes,
        seconds=request.seconds,
        prompt_ids=request.prompt,
        plain_tags=frozenset(k for k, (branch, i) in enumerate(places) if i in branch.plain),
        closing_tags=tuple(request.open_block_tags),
        tags=markup.tags,
        scheme=request.scheme,
    )


def _parse(text: str, problems: list[str]) -> tuple[Trace | None, list[str]]:
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
