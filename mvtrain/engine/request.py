"""One request: the tree of its branches, and the rules by which a sampled token forks, joins or ends a branch.

The structure that a model writes is never trusted. A block forks at `</Goal>` or not at all; tags that stand out of
place are tokens like all others, and `problems` says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import chain

import numpy as np

from mvtrain.engine.branches import Branch
from mvtrain.engine.markup import Markup
from mvtrain.engine.passes import Piece, pieces_of
from mvtrain.engine.prefix import Prefix
from mvtrain.engine.sampling import SamplingParams
from mvtrain.engine.stopping import StopStrings
from mvtrain.grammar import child_label, outline_labels
from mvtrain.layout import Scheme

MAX_ROWS = 1024
"""Tokens that the branches of one request may add to a pass; what is above waits for the next one."""
MAX_PROBLEMS = 50
"""Different problems that are kept; of the others only the number is."""
MAX_LABEL = 24
"""Characters of a label; an outline with a longer one is labelled by its place."""

# (stage of the branch, tag) -> next stage, for tags that only lead on.
_NEXT_STAGE = {
    ("parallel", "goal"): "goal",
    ("conclusion", "end_conclusion"): "end_conclusion",
    ("end_conclusion", "end_parallel"): "text",
}


class Request:
    """A prompt on its way to a completion.

    Args:
        prompt: token ids, at least one. Tags in it are text.
        max_positions: how many positions the model has.
        sample: which of several answers to the same prompt this is; it has noise of its own.
        prefix: the prompt without its last token, if other requests have the same.

    Raises:
        ValueError: the prompt is empty or leaves no room for an answer.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        markup: Markup,
        scheme: Scheme,
        max_positions: int,
        sample: int = 0,
        prefix: Prefix | None = None,
    ) -> None:
        if not 0 < len(prompt) < max_positions:
            raise ValueError(f"a prompt of {len(prompt)} tokens; expected 1 to {max_positions - 1}")
        self.prompt = list(prompt)
        self.params = params
        self.markup = markup
        self.isolated = scheme == "isolated"
        self.scheme = scheme
        self.sample = sample
        self.prefix = prefix
        self.max_positions = max_positions
        self.total_limit = params.total_limit
        limit = min(len(prompt) + params.max_tokens, max_positions)
        limits = np.zeros(1, dtype=np.int32)
        self.root = Branch(self, 0, limits, len(prompt), limit, first_index=len(prompt))
        self.branches = [self.root]
        self.row: int | None = None
        """The request's row of the cache while it runs."""
        self.unfed: dict[Branch, None] = {self.root: None}
        """Branches with tokens that have not gone through the model, parents before their paths."""
        self.stop_strings = StopStrings(params.stop, markup) if params.stop else None
        self.num_cut = 0
        """Characters at the end of the text that are not part of the answer: a stop string, and what came with it."""
        self.problems: dict[str, None] = {}  # in the order of appearance, each once
        self.num_more_problems = 0
        self.num_forced_closes = 0
        """Paths and blocks that the engine closed, since the model did not or was not allowed to go on."""
        self.answer_forced = False
        """Whether a limit was reached and the answer opened by force (`answer_tokens`)."""
        self.finish_reason: str | None = None
        self.num_passes = 0
        self.num_tokens = 0
        self.num_preemptions = 0
        self.added = time.perf_counter()
        self.started = self.first_token = self.ended = 0.0
        self._rewind()

    # Its tokens on their way through the model

    def start(self, row: int) -> None:
        self.row = row
        self.started = self.started or time.perf_counter()

    @property
    def num_pending(self) -> int:
        """Tokens that wait for the model."""
        return sum(branch.num_pending for branch in self.unfed)

    @property
    def num_next(self) -> int:
        """Tokens that it adds to the next pass, if it may add all it wants."""
        return min(self.num_pending, MAX_ROWS)

    @property
    def in_prefill(self) -> bool:
        """Whether a long prompt goes through the model, or, after a pre-emption, all that had gone before."""
        return self.num_pending > max(MAX_ROWS // 16, 8 * len(self.unfed))

    def take(self, count: int) -> list[Piece]:
        """The next `count` pending tokens, from now on fed."""
        self.num_passes += 1
        if count >= self.num_pending:  # all see each other's keys in this very pass, so any order will do
            runs = [(branch, branch.num_fed, branch.next_index) for branch in self.unfed]
        else:
            runs = _first(self.root.pending_in_text_order(), count)
        pieces = [piece for run in runs for piece in pieces_of(run[0], self.row, *run[1:])]
        for branch, _, end in runs:
            if end == branch.next_index:
                del self.unfed[branch]
        return pieces

    def preempt(self) -> None:
        """Give up what is in the cache: all of it has to go through the model again."""
        self.row = None
        self.num_preemptions += 1
        self._rewind()

    def _rewind(self) -> None:
        self.unfed = {branch: None for branch in self.branches}
        for branch in self.branches:
            branch.num_fed = 0
        if self.prefix is not None:
            self.root.num_fed = len(self.prefix.tokens)

    # What the model says

    def advance(
        self, branch: Branch, token: int, logprob: float, top_logprobs: tuple[tuple[int, float], ...] = ()
    ) -> None:
        """Take a sampled token. The branch may fork, end or join with its siblings, and the request may finish."""
        if self.finish_reason or branch.done:
            return  # a sibling used the budget up in this very step
        if math.isnan(logprob):
            self._report(f"the model's output at {branch.name} is not a number")
            self._finish("error")
            return
        self.first_token = self.first_token or time.perf_counter()
        if top_logprobs:
            branch.top_logprobs[len(branch.tokens)] = top_logprobs
        branch.num_sampled += 1
        if token in self.markup.eos_ids or token in self.params.stop_token_ids:
            self._end_of_text(branch, token, logprob)
        elif token == self.markup.tags.end_path and branch.parent is not None:
            self._close(branch, "end_path", logprob)
        else:
            self._append(branch, token, logprob)
            branch.blank = branch.blank and self.markup.is_blank(token)
            if token in self.markup.kinds:
                self._read_tag(branch, token)
            elif self.stop_strings:
                self._look_for_stop(branch)
        if not self.finish_reason:
            self._check_budget(branch)

    def cancel(self) -> None:
        """Finish with what is there."""
        if not self.finish_reason:
            self._finish("cancelled")

    def no_room(self, capacity: float) -> None:
        """Finish, since the cache is too small for the request alone."""
        self._report(f"the KV cache has room for {capacity:.0f} tokens only")
        self._finish("length")

    def _append(self, branch: Branch, token: int, logprob: float | None, opens: Sequence[int] = ()) -> None:
        branch.append(token, logprob, opens)
        branch.passes.append(self.num_passes)
        self.unfed[branch] = None
        self.num_tokens += 1

    def _force(self, branch: Branch, tokens: Sequence[int], opens: Sequence[int] = ()) -> None:
        for token in tokens:
            self._append(branch, token, None, opens)
            opens = ()

    def _report(self, problem: str) -> None:
        if problem in self.problems or len(self.problems) < MAX_PROBLEMS:
            self.problems.setdefault(problem)
        else:
            self.num_more_problems += 1

    # Tags

    def _read_tag(self, branch: Branch, token: int) -> None:
        offset, kind = len(branch.tokens) - 1, self.markup.kinds[token]
        following = _NEXT_STAGE.get((branch.stage, kind))
        if not self.params.parallel:
            branch.plain.add(offset)
        elif kind == "parallel" and branch.stage in ("text", "parallel", "goal"):
            self._abandon(branch, "another <Parallel>")
            branch.stage, branch.open_tags = "parallel", [offset]
        elif kind == "end_goal" and branch.stage == "goal":
            branch.open_tags.append(offset)
            self._try_to_fork(branch)
        elif following:
            branch.stage = following
            if following == "goal":
                branch.open_tags.append(offset)
        else:
            tag = self.markup.text_of(token)
            branch.plain.add(offset)
            self._report(f"{tag} out of place at {branch.name}")
            self._abandon(branch, tag)

    def _abandon(self, branch: Branch, reason: str) -> None:
        """Make the tags of a block that has not forked plain text; the branch goes on sequentially."""
        if branch.stage in ("parallel", "goal"):
            branch.plain.update(branch.open_tags)
            branch.stage, branch.open_tags = "text", []
            self._report(f"a block at {branch.name} was not forked: {reason}")

    # Fork

    def _try_to_fork(self, branch: Branch) -> None:
        goal = branch.tokens[branch.open_tags[-2] + 1 : -1]
        labels = outline_labels(self.markup.decode(goal))
        if not labels:
            self._abandon(branch, "its goal has no outline")
        elif len(labels) > self.params.max_paths:
            self._abandon(branch, f"{len(labels)} outlines, at most {self.params.max_paths} paths are allowed")
        elif branch.depth >= self.params.max_depth:
            self._abandon(branch, f"depth {branch.depth + 1}, at most {self.params.max_depth} is allowed")
        else:
            self._fork(branch, [self._label(branch, i, label) for i, label in enumerate(labels, start=1)])

    def _label(self, branch: Branch, place: int, label: str | None) -> str:
        """The outline's own label; by its place where it has none, or one that no reader could use."""
        expected = child_label(branch.label, place)
        if label == expected:
            return label
        shown = "no label" if label is None else f"the label {label[:MAX_LABEL]}"
        self._report(f"outline {place} at {branch.name} has {shown}, expected {expected}")
        return expected if label is None or len(label) > MAX_LABEL else label

    def _fork(self, branch: Branch, labels: list[str]) -> None:
        separator = self.markup.separator
        openings = [self.markup.path_opening(label) for label in labels]
        num_shared = 0 if self.isolated else len(separator)
        if self.isolated:
            openings = [[*separator, *opening] for opening in openings]
        if not self._has_room_to_fork(branch, max(map(len, openings)), num_shared + sum(map(len, openings))):
            return
        start = branch.position
        if not self.isolated:
            self._force(branch, separator)
        branch.stage, branch.open_tags = "forked", []
        limits = branch.limits_of_fork()
        branch.paths = [self._new_path(branch, i, label, limits, start) for i, label in enumerate(labels)]
        branch.num_blocks += 1
        branch.num_running = len(branch.paths)
        for path, opening in zip(branch.paths, openings, strict=True):
            branch.children.append((len(branch.tokens), path))
            self._force(path, opening)

    def _new_path(self, parent: Branch, index: int, label: str, limits: np.ndarray, position: int) -> Branch:
        node = len(self.branches)
        lineage = (*parent.lineage, parent.num_blocks, index)
        limit = parent.position_limit
        if self.params.max_path_tokens is not None:
            limit = min(limit, position + self.params.max_path_tokens)
        path = Branch(self, node, limits, position, limit, parent=parent, label=label, lineage=lineage)
        self.branches.append(path)
        return path

    # Ends of paths, and joins

    def _end_of_text(self, branch: Branch, token: int, logprob: float) -> None:
        if branch.parent is not None:
            self._report(f"{branch.name} ended by end of text")
            self._close(branch, "end_of_text")
            return
        self._append(branch, token, logprob)
        self._end_answer()

    def _end_answer(self) -> None:
        if self.root.stage in ("conclusion", "end_conclusion"):
            self._report("the text ended in an open block")
        self._finish("stop")

    def _look_for_stop(self, branch: Branch) -> None:
        found = self.stop_strings.find(branch)
        if found is None:
            return
        if branch.parent is not None:
            self._report(f"{branch.name} ended by a stop string")
            self._close(branch, "stop")
        else:
            self.num_cut = found
            self._end_answer()

    def _close(self, path: Branch, ended_by: str, logprob: float | None = None) -> None:
        """End a path, by its own `</Path>` or (logprob None) by force, and everything that is open in it first."""
        tags = self.markup.tags
        if path.stage == "forked":
            self._close_all(path.paths, "parent")  # the last one joins
        self._abandon(path, "its path ended")
        if path.stage in ("conclusion", "end_conclusion"):
            self._close_block(path)
        if path.blank and not path.children:
            self._report(f"{path.name} is empty")
        self.num_forced_closes += logprob is None
        self._append(path, tags.end_path, logprob)
        path.done, path.ended_by = True, ended_by
        path.parent.num_running -= 1
        if path.parent.num_running == 0:
            self._join(path.parent)

    def _close_block(self, branch: Branch) -> None:
        """End the block in whose conclusion a branch is, by force."""
        tags = self.markup.tags
        self._report(f"a block at {branch.name} was closed by force")
        self.num_forced_closes += 1
        self._force(branch, [tags.end_conclusion] if branch.stage == "conclusion" else [])
        self._force(branch, [tags.end_parallel])
        branch.stage = "text"

    def _close_all(self, paths: Sequence[Branch], ended_by: str) -> None:
        for path in paths:
            if not path.done:
                self._close(path, ended_by)

    def _join(self, branch: Branch) -> None:
        """Let the branch see all of its paths, and go on from the furthest position any of them reached."""
        paths, separator = branch.paths, self.markup.separator
        ends = [path.positions[-1] for path in paths]
        nodes = [(path.node, *path.joined) for path in paths]
        branch.position = max(ends) + 1
        num_forced = 1 + len(separator) * (1 if self.isolated else len(paths))
        has_room = self._has_room_to_join(branch, 1 + len(separator) * self.isolated, num_forced)
        if branch is self.root and self.finish_reason:
            return
        if not has_room and not self.params.answer_tokens:
            self._finish("length")
            return
        joined = tuple(chain.from_iterable(nodes))
        if self.isolated:
            self._force(branch, separator, joined)
        else:
            self._force_separators(branch, ends, nodes)
        branch.joined += joined
        self._force(branch, [self.markup.tags.conclusion])
        branch.stage, branch.paths = "conclusion", []
        if not has_room:
            self._out_of_budget()

    def _force_separators(self, branch: Branch, ends: list[int], nodes: list[tuple[int, ...]]) -> None:
        """Original scheme: the separator after a path counts on from it, and sees it and the paths before."""
        first = len(branch.children) - len(ends)
        for i, (end, opened) in enumerate(zip(ends, nodes, strict=True)):
            branch.children[first + i] = (len(branch.tokens), branch.children[first + i][1])
            branch.position = end + 1
            self._force(branch, self.markup.separator, opened)
        branch.position = max(ends) + 1

    # Budgets

    def _has_room_to_fork(self, branch: Branch, num_next: int, num_all: int) -> bool:
        """Whether the openings, `num_next` tokens on each path and `num_all` in all, fit, and one more each.

        Where they do not, the answer finishes; a path goes on sequentially for what is left of its budget.
        """
        too_long = branch.position + num_next >= branch.position_limit
        if self.num_tokens + num_all >= self.total_limit or (too_long and branch is self.root):
            self._out_of_budget()
            return False
        if too_long:
            self._abandon(branch, "no room for its paths within the length limit")
        return not too_long

    def _has_room_to_join(self, branch: Branch, num_next: int, num_all: int) -> bool:
        """Whether `num_next` more positions and `num_all` more tokens fit, and one more each.

        Below the root, and before a forced answer, a join is what closes a text, and that is free.
        """
        if branch is not self.root or self.answer_forced:
            return True
        return self.num_tokens + num_all < self.total_limit and branch.position + num_next < branch.position_limit

    def _check_budget(self, branch: Branch) -> None:
        """End what is over its budget: the request, or a path, and then the path around that one, if it joined."""
        if self.num_tokens >= self.total_limit:
            self._out_of_budget()
            return
        while branch.done:
            branch = branch.parent
        if not branch.needs_token or branch.position < branch.position_limit:
            return
        if branch.parent is None:
            self._out_of_budget()
        else:
            self._report(f"{branch.name} ended by the length limit")
            self._close(branch, "limit")
            if not self.finish_reason:
                self._check_budget(branch.parent)

    def _out_of_budget(self) -> None:
        """Finish, or, with `answer_tokens` and for the first time, close what is open and open the answer.

        An answer that has begun, as the reasoning is over, goes on instead.
        """
        if self.answer_forced or not self.params.answer_tokens:
            self._finish("length")
            return
        self.answer_forced = True
        self._report("the answer was forced at the length limit")
        root = self.root
        if root.stage == "forked":
            self._close_all(root.paths, "answer")  # the last one joins
        self._abandon(root, "the answer was forced")
        if root.stage in ("conclusion", "end_conclusion"):
            self._close_block(root)
        last_think = self._last_think()
        if last_think != self.markup.tags.end_think:
            thinking = last_think == self.markup.tags.think
            self._force(root, self.markup.final_answer(self.params.answer_prefix, thinking))
        self.total_limit = self.num_tokens + self.params.answer_tokens
        root.position_limit = min(root.position + self.params.answer_tokens, self.max_positions)
        if root.position >= root.position_limit:
            self._finish("length")

    def _last_think(self) -> int | None:
        """The last `<Think>` or `</Think>` at the top level."""
        tags = self.markup.tags
        return next((token for token in reversed(self.root.tokens) if token in (tags.think, tags.end_think)), None)

    def _finish(self, reason: str) -> None:
        """End the request. Open paths are closed by force, in the order of the text."""
        self.finish_reason = reason
        if self.root.stage == "forked":
            limited = "the length limit was reached" if reason == "length" else f"the answer was ended ({reason})"
            self._report(f"{limited} in a block")
            self._close_all(self.root.paths, "answer")
        self._abandon(self.root, "the answer ended")
        if self.root.blank and not self.root.children and reason != "cancelled":
            self._report("the answer is empty")
        self.root.done = True
        self.ended = time.perf_counter()

    @property
    def open_block_tags(self) -> list[int]:
        """The tags that would close the block that is open at the end of a finished request."""
        tags = self.markup.tags
        closing = [tags.conclusion, tags.end_conclusion, tags.end_parallel]
        return {"forked": closing, "conclusion": closing[1:], "end_conclusion": closing[2:]}.get(self.root.stage, [])

    def check_integrity(self) -> None:
        """Assert what must hold between two steps. For tests."""
        assert self.num_tokens == sum(len(branch.tokens) for branch in self.branches)
        assert [branch.node for branch in self.branches] == list(range(len(self.branches)))
        for branch in self.branches:
            assert len(branch.tokens) == len(branch.positions) == len(branch.logprobs) == len(branch.passes)
            assert (branch.num_pending > 0) == (branch in self.unfed) and branch.num_pending >= 0
            assert branch.num_running == sum(not path.done for path in branch.paths)
            assert (branch.stage == "forked") == any(not path.done for path in branch.paths) or self.finish_reason
            assert branch.parent is None or branch.parent.stage == "forked" or branch.done
        if not self.finish_reason:
            assert any(branch.needs_token for branch in self.branches), "nothing can go on"


def _first(runs, count: int) -> list[tuple[Branch, int, int]]:
    """The first `count` tokens of runs (branch, start, end)."""
    taken = []
    for branch, start, end in runs:
        end = min(end, start + count)
        taken.append((branch, start, end))
        count -= end - start
        if not count:
            break
    return taken
