"""Stop strings: the end of a branch that is found in its text, also where it is split over tokens."""

from __future__ import annotations

from collections.abc import Sequence

from mvtrain.engine.branches import Branch
from mvtrain.engine.detokenizer import Detokenizer
from mvtrain.engine.markup import Markup


class StopStrings:
    """Looks for stop strings in what the branches of one request sample. Text that the engine forced has none."""

    def __init__(self, stop: Sequence[str], markup: Markup) -> None:
        self.stop = stop
        self.markup = markup
        self.longest = max(map(len, stop))
        self._states: dict[Branch, tuple[Detokenizer, str]] = {}  # reader, and the end of what it has read

    def find(self, branch: Branch) -> int | None:
        """Characters from the first stop string on to the end of the branch's text; None where there is none."""
        reader, tail = self._states.get(branch) or (Detokenizer(branch, self.markup), "")
        new = range(reader.num_read, len(branch.tokens))
        forced = next((offset for offset in reversed(new) if branch.logprobs[offset] is None), None)
        if forced is not None:
            reader.num_read, tail = forced + 1, ""
        text = tail + reader.read()
        found = [at for at in (text.find(stop) for stop in self.stop) if at >= 0]
        self._states[branch] = (reader, text[max(0, len(text) - self.longest + 1) :])
        return len(text) - min(found) if found else None
