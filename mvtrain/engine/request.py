"""One request: the tree of its branches, and the rules by which a sampled token forks, joins or ends a branch.

The structure that a model writes is never trusted. A block forks at `</Goal>` or not at all; tags that stand out of
place are tokens like all others, and `problems` says so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain

import numpy as np

from mvtrain.engine.branches import Branch
from mvtrain.engine.markup import Markup
from mvtrain.engine.sampling import SamplingParams
from mvtrain.grammar import child_label, outline_labels
from mvtrain.layout import Scheme

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

    Raises:
        ValueError: the prompt is empty or leaves no room for an answer.
    """

    def __init__(
        self, prompt: Sequence[int], params: SamplingParams, markup: Markup, scheme: Scheme, max_positions: int
    ) -> None:
        if not 0 < len(prompt) < max_positions:
            raise ValueError(f"a prompt of {len(prompt)} tokens; expected 1 to {max_positions - 1}")
        self.prompt = list(prompt)
        self.params = params
        self.markup = markup
        self.isolated = scheme == "isolated"
        self.scheme = scheme
        self.position_limit = min(len(prompt) + params.max_tokens, max_positions)
        self.root = Branch(self, node=0, limits=np.zeros(1, dtype=np.int32), position=len(prompt))
        for position, token in enumerate(self.prompt):
            self.root.feed(token, position)
        self.branches = [self.root]
        self.problems: dict[str, None] = {}  # in the order of appearance, each once
        self.finish_reason: str | None = None
        self.num_passes = 0
        self.num_tokens = 0
        self.started = 0.0
        self.seconds = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    @property
    def in_prefill(self) -> bool:
        return self.num_tokens == 0

    def live_branches(self) -> list[Branch]:
        """Branches that have tokens to feed, parents first."""
        return [branch for branch in self.branches if branch.pending]

    def advance(self, branch: Branch, token: int, logprob: float) -> None:
        """Take a sampled token. The branch may fork, end or join with its siblings, and the request may finish."""
        if self.finish_reason:
            return  # a sibling used the budget up in this very step
        branch.num_sampled += 1
        if token in self.markup.eos_ids:
            self._end_of_text(branch, token, logprob)
        elif token == self.markup.tags.end_path and branch.parent is not None:
            self._close(branch, logprob)
        else:
            self._append(branch, token, logprob)
            if token in self.markup.kinds:
                self._read_tag(branch, token)
        if not self.finish_reason:
            self._check_budget(branch)

    def _append(self, branch: Branch, token: int, logprob: float | None, opens: tuple[int, ...] = ()) -> None:
        branch.append(token, logprob, opens)
        self.num_tokens += 1

    def _force(self, branch: Branch, tokens: Sequence[int], opens: tuple[int, ...] = ()) -> None:
        for token in tokens:
            self._append(branch, token, None, opens)
            opens = ()

    def _report(self, problem: str) -> None:
        self.problems.setdefault(problem)

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
        labels = self._labels(branch)
        if not labels:
            self._abandon(branch, "its goal has no outline")
        elif len(labels) > self.params.max_paths:
            self._abandon(branch, f"{len(labels)} outlines, at most {self.params.max_paths} paths are allowed")
        elif branch.depth >= self.params.max_depth:
            self._abandon(branch, f"depth {branch.depth + 1}, at most {self.params.max_depth} is allowed")
        else:
            self._fork(branch, labels)

    def _labels(self, branch: Branch) -> list[str]:
        """One label per outline of the goal that just ended; outlines without one are labelled by their place."""
        goal = branch.tokens[branch.open_tags[-2] + 1 : -1]
        labels = outline_labels(self.markup.decode(goal))
        return [label or child_label(branch.label, i) for i, label in enumerate(labels, start=1)]

    def _fork(self, branch: Branch, labels: list[str]) -> None:
        separator = self.markup.separator
        openings = [self.markup.path_opening(label) for label in labels]
        num_shared = 0 if self.isolated else len(separator)
        if self.isolated:
            openings = [[*separator, *opening] for opening in openings]
        if not self._has_room(branch, max(map(len, openings)), num_shared + sum(map(len, openings))):
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
        path = Branch(self, node, limits, position, parent, label, lineage)
        self.branches.append(path)
        return path

    # Ends of paths, and joins

    def _end_of_text(self, branch: Branch, token: int, logprob: float) -> None:
        if branch.parent is not None:
            self._report(f"{branch.name} ended by end of text")
            self._close(branch)
            return
        self._append(branch, token, logprob)
        if branch.stage in ("conclusion", "end_conclusion"):
            self._report("the text ended in an open block")
        self._finish("stop")

    def _close(self, path: Branch, logprob: float | None = None) -> None:
        """End a path, by its own `</Path>` or (logprob None) by force, and everything that is open in it first."""
        tags = self.markup.tags
        if path.stage == "forked":
            self._close_all(path.paths)  # the last one joins
            if path.stage == "forked":  # they were closed, but there was no room for the join
                self._join(path)
        self._abandon(path, "its path ended")
        if path.stage in ("conclusion", "end_conclusion"):
            self._report(f"a block at {path.name} was closed by force")
            self._force(path, [tags.end_conclusion] if path.stage == "conclusion" else [])
            self._force(path, [tags.end_parallel])
            path.stage = "text"
        self._append(path, tags.end_path, logprob)
        path.done = True
        path.parent.num_running -= 1
        if path.parent.num_running == 0:
            self._join(path.parent)

    def _close_all(self, paths: Sequence[Branch]) -> None:
        for path in paths:
            if not path.done:
                self._close(path)

    def _join(self, branch: Branch) -> None:
        """Let the branch see all of its paths, and go on from the furthest position any of them reached."""
        paths, separator = branch.paths, self.markup.separator
        ends = [path.positions[-1] for path in paths]
        nodes = [(path.node, *path.joined) for path in paths]
        branch.position = max(ends) + 1
        num_forced = 1 + len(separator) * (1 if self.isolated else len(paths))
        if not self._has_room(branch, 1 + len(separator) * self.isolated, num_forced):
            return
        joined = tuple(chain.from_iterable(nodes))
        if self.isolated:
            self._force(branch, separator, joined)
        else:
            self._force_separators(branch, ends, nodes)
        branch.joined += joined
        self._force(branch, [self.markup.tags.conclusion])
        branch.stage, branch.paths = "conclusion", []

    def _force_separators(self, branch: Branch, ends: list[int], nodes: list[tuple[int, ...]]) -> None:
        """Original scheme: the separator after a path counts on from it, and sees it and the paths before."""
        first = len(branch.children) - len(ends)
        for i, (end, opened) in enumerate(zip(ends, nodes, strict=True)):
            branch.children[first + i] = (len(branch.tokens), branch.children[first + i][1])
            branch.position = end + 1
            self._force(branch, self.markup.separator, opened)
        branch.position = max(ends) + 1

    # Budgets

    def _has_room(self, branch: Branch, num_next: int, num_all: int) -> bool:
        """Whether `num_next` tokens fit on the branch and `num_all` into the request, and one more each.

        Where they do not, the request finishes. One that is being finished has room: what closes its text is free.
        """
        if self.finish_reason:
            return branch is not self.root
        if self.num_tokens + num_all >= self.params.total_limit or branch.position + num_next >= self.position_limit:
            self._finish("length")
        return not self.finish_reason

    def _check_budget(self, branch: Branch) -> None:
        if self.num_tokens >= self.params.total_limit:
            self._finish("length")
        elif branch.needs_token and branch.position >= self.position_limit:
            if branch.parent is None:
                self._finish("length")
            else:
                self._report(f"{branch.name} ended by the length limit")
                self._close(branch)

    def _finish(self, reason: str) -> None:
        """End the request. Open paths are closed by force, in the order of the text."""
        self.finish_reason = reason
        if self.root.stage == "forked":
            self._report("the length limit was reached in a block")
            self._close_all(self.root.paths)
        self._abandon(self.root, "the answer ended")
        self.root.done = True
        self.seconds = time.perf_counter() - self.started

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
        assert sum(1 for _ in self.root.in_text_order()) == self.num_tokens
        for branch in self.branches:
            assert len(branch.tokens) == len(branch.positions) == len(branch.logprobs)
            assert branch.next_index == len(branch.tokens) + (len(self.prompt) if branch is self.root else 0)
            assert branch.num_running == sum(not path.done for path in branch.paths)
            assert (branch.stage == "forked") == any(not path.done for path in branch.paths) or self.finish_reason
            assert branch.parent is None or branch.parent.stage == "forked" or branch.done
        if not self.finish_reason:
            assert any(branch.needs_token for branch in self.branches), "nothing can go on"
