"""Answers while they are written: the text of each, and the paths of its open block side by side.

The view knows what events tell it, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mvtrain.commands.plain_text import plain

if TYPE_CHECKING:
    from mvtrain.engine import Event

NARROWEST = 26
"""Columns of a path's panel; where fewer fit beside each other, they are stacked."""
LINES = 6
"""Lines of text of a path; the last ones are shown."""
REFRESH = 0.1
"""Seconds between two pictures, at least."""


@dataclass
class _Lane:
    """One branch."""

    label: str | None = None
    text: str = ""
    num_tokens: int = 0
    ended_by: str = ""
    paths: list[tuple[int, ...]] = field(default_factory=list)
    """Lineages of the paths of the open block; empty while none is open."""


@dataclass
class _Answer:
    prompt: str
    lanes: dict[tuple[int, ...], _Lane] = field(default_factory=lambda: {(): _Lane()})
    finish_reason: str = ""

    @property
    def has_begun(self) -> bool:
        return self.lanes[()].num_tokens > 0


class LiveView:
    """What there is of all answers.

    Args:
        prompts: one for each answer.
    """

    def __init__(self, prompts: Sequence[str]) -> None:
        self.answers = [_Answer(prompt) for prompt in prompts]

    def tell(self, event: Event) -> None:
        """Take an event in."""
        answer = self.answers[event.request]
        lane = answer.lanes[event.branch]
        if event.kind == "text":
            lane.text += event.text
            lane.num_tokens += event.num_tokens
        elif event.kind == "fork":
            lane.paths = [(*event.branch, event.block, k) for k in range(len(event.paths))]
            answer.lanes |= {path: _Lane(label) for path, label in zip(lane.paths, event.paths, strict=True)}
        elif event.kind == "join":
            lane.paths = []
        elif event.kind == "end":
            lane.ended_by = event.reason
        else:
            answer.finish_reason = event.reason

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or console.height
        running = [answer for answer in self.answers if answer.has_begun and not answer.finish_reason]
        num_shown = max(1, (height - 2) // (2 * LINES + 6))
        yield from (self._panel(answer, options.max_width) for answer in running[:num_shown])
        yield self._status(len(running), num_shown)

    def _status(self, num_running: int, num_shown: int) -> Text:
        finished = sum(bool(answer.finish_reason) for answer in self.answers)
        num_tokens = sum(lane.num_tokens for answer in self.answers for lane in answer.lanes.values())
        hidden = f" ({num_running - num_shown} not shown)" if num_running > num_shown else ""
        waiting = len(self.answers) - num_running - finished
        return plain(
            f"{num_running} running{hidden}, {waiting} waiting, {finished} finished, {num_tokens} tokens", "dim"
        )

    def _panel(self, answer: _Answer, width: int) -> Panel:
        top = answer.lanes[()]
        parts: list[RenderableType] = [_tail(top.text, LINES, width - 4)]
        if top.paths:
            parts.append(self._paths(answer, top.paths, width - 4))
        return Panel(Group(*parts), title=plain(_first_line(answer.prompt, width - 8)), title_align="left")

    def _paths(self, answer: _Answer, paths: list[tuple[int, ...]], width: int) -> Group:
        num_columns = max(1, min(len(paths), width // NARROWEST))
        num_shown = num_columns if num_columns > 1 else min(len(paths), 3)
        # Those that still write come first, in their order.
        shown = sorted(sorted(paths, key=lambda path: bool(answer.lanes[path].ended_by))[:num_shown])
        grid = Table.grid(expand=True)
        for _ in range(num_columns):
            grid.add_column(ratio=1)
        panels = [self._path(answer, answer.lanes[path], width // num_columns) for path in shown]
        for start in range(0, len(panels), num_columns):
            grid.add_row(*panels[start : start + num_columns])
        hidden = len(paths) - len(shown)
        more = [plain(f"and {hidden} more paths", "dim")] if hidden else []
        return Group(grid, *more)

    def _path(self, answer: _Answer, lane: _Lane, width: int) -> Panel:
        title = f"{lane.label} · {lane.num_tokens} tokens{' · done' if lane.ended_by else ''}"
        parts = [_tail(lane.text, LINES, width - 4)]
        if lane.paths:
            inner = [answer.lanes[path] for path in lane.paths]
            counts = ", ".join(f"{path.label}: {path.num_tokens}{'*' if path.ended_by else ''}" for path in inner[:6])
            parts.append(plain(f"{len(inner)} paths inside ({counts})", "cyan"))
        style = "green" if lane.ended_by == "end_path" else "yellow" if lane.ended_by else "cyan"
        return Panel(Group(*parts), title=plain(title), title_align="left", border_style=style)


class LiveTerminal:
    """Draws a view over and over while events come, and takes it away at the end."""

    def __init__(self, view: LiveView) -> None:
        self.live = Live(view, auto_refresh=False, transient=True, vertical_overflow="crop")
        self.drawn = 0.0

    def __enter__(self) -> LiveTerminal:
        self.live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.__exit__(*error)

    def draw(self) -> None:
        """Draw, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self.drawn >= REFRESH:
            self.drawn = now
            self.live.refresh()


def _tail(text: str, num_lines: int, width: int) -> Text:
    """The last lines of a text as they are wrapped in `width` columns."""
    lines: list[str] = []
    for line in text[-num_lines * max(1, width) :].split("\n"):
        lines += [line[at : at + width] for at in range(0, len(line), max(1, width))] or [""]
    while lines and not lines[-1].strip():
        lines.pop()
    return plain("\n".join(lines[-num_lines:]))


def _first_line(text: str, width: int) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= width else line[: max(1, width - 1)] + "\u2026"
