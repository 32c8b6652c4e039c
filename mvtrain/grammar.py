"""Text <-> Trace.

A trace is text with MapReduce blocks in it: a goal with one outline per subtask, one path per outline, a conclusion.
One scanner with a stack of open tags serves `parse`, which raises at the first problem, and `check`, which recovers and
reports them all. Nothing here recurses, so nesting may be as deep as memory allows; time is linear in the text.
The format is described in docs/trace-format.md. Standard library only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from mvtrain.trace import Block, Outline, Path, Think, Trace, depth, num_blocks, walk

__all__ = [
    "TAGS", "Block", "Outline", "Path", "Problem", "Think", "Trace", "TraceError",
    "check", "child_label", "depth", "num_blocks", "outline_labels", "parse", "render", "walk",
]  # fmt: skip

TAG_NAMES = ("Think", "Parallel", "Goal", "Outline", "Path", "Conclusion")
TAGS = tuple(tag for name in TAG_NAMES for tag in (f"<{name}>", f"</{name}>"))
"""The twelve tags, in the order in which they are added to a vocabulary."""

_TAG = re.compile(r"<(/?)(Think|think|Parallel|Goal|Outline|Path|Conclusion)>")
_LABEL = re.compile(r"\s*([0-9]+(?:\.[0-9]+)*)\s*:")


@dataclass(frozen=True)
class Problem:
    """One fault of a text. `line` and `column` are 1-based; lines end at a newline character."""

    line: int
    column: int
    message: str
    """What is wrong, for instance `</Path> closes path 2, but <Parallel> is still open`."""
    expected: str
    """What would be right, for instance `</Parallel> (opened on line 11, column 1)`."""
    source: str = field(default="", repr=False)
    """The line, or a part of it where it is long."""
    source_column: int = field(default=1, repr=False)
    """Where in `source` the fault is, 1-based."""

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.message}"

    @property
    def excerpt(self) -> str:
        """Two lines: the source with its line number, and a caret with what was expected."""
        gutter = f"    {self.line} | "
        return f"{gutter}{self.source}\n{' ' * (len(gutter) + self.source_column - 1)}^ expected {self.expected}"


class TraceError(ValueError):
    """A text is not a well-formed trace. `str` gives place and message, `excerpt` the source and what was expected."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem
        self.line, self.column = problem.line, problem.column
        self.message, self.expected, self.excerpt = problem.message, problem.expected, problem.excerpt

    def __reduce__(self) -> tuple:
        return TraceError, (self.problem,)


def parse(text: str) -> Trace:
    """Read a trace. Raises TraceError at the first problem."""
    reader = _Reader(text)
    trace = reader.read()
    if reader.problems:
        raise TraceError(reader.problems[0])
    return trace


def check(text: str) -> list[Problem]:
    """All problems of a text, in the order of reading; an empty list for what `parse` accepts. Never raises."""
    reader = _Reader(text)
    reader.read()
    return reader.problems


def render(trace: Trace) -> str:
    """The canonical text: every tag on a line of its own, one blank line after `</Think>`, no white space at the end.

    `parse(render(trace)) == trace` as long as the texts of the trace hold no tag and its labels fit the grammar.
    """
    lines: list[str] = []
    todo: list = [*reversed(trace.parts)]
    while todo:
        part = todo.pop()
        if isinstance(part, str):
            lines.append(part)
        elif isinstance(part, Think):
            lines.append("<Think>")
            todo += (*([""] if todo else []), "</Think>", *reversed(part.parts))
        elif isinstance(part, Path):
            text, parts = _first_text(part.parts)
            lines += ("<Path>", f"{part.label}: {text}".rstrip())
            todo += ("</Path>", *reversed(parts))
        else:
            lines += ("<Parallel>", "<Goal>")
            for outline in part.outlines:
                lines += ("<Outline>", f"{outline.label}: {outline.text}".rstrip(), "</Outline>")
            lines.append("</Goal>")
            conclusion = [part.conclusion] if part.conclusion else []
            todo += ("</Parallel>", "</Conclusion>", *conclusion, "<Conclusion>", *reversed(part.paths))
    return "\n".join(lines)


def _first_text(parts: tuple) -> tuple[str, tuple]:
    """The text that stands on the label's line, and the parts after it."""
    return (parts[0], parts[1:]) if parts and isinstance(parts[0], str) else ("", parts)


def child_label(parent: str | None, index: int) -> str:
    """The label of the `index`-th path (1-based) of a block: `2` at top level (parent None), `1.2` in path `1`."""
    return str(index) if parent is None else f"{parent}.{index}"


def outline_labels(goal_text: str) -> list[str | None]:
    """The labels of the outlines in the text between `<Goal>` and `</Goal>`; None for an outline without a label."""
    opened = (tag.end() for tag in _TAG.finditer(goal_text) if tag.group() == "<Outline>")
    return [match and match.group(1) for match in (_LABEL.match(goal_text, end) for end in opened)]


class _Open:
    """An open tag, or the text as a whole (`name` is empty), and what has been read in it so far."""

    def __init__(self, name: str, start: int, block: _Open | None = None, label: str | None = None) -> None:
        self.name = name
        self.start = start
        self.label = label  # of an outline or a path; of a block: the label of the path around it
        self.block = block or self  # the block that an outline, a path, a goal or a conclusion is part of
        self.parts: list = []
        self.outlines: list[Outline] = []
        self.labels: set[str] = set()
        self.paths: list[Path] = []
        self.conclusion = ""
        self.stage = ""  # of a block: the last child that was opened
        self.broken = False  # of a block: a child was faulty, so that counts would only repeat the complaint

    def __str__(self) -> str:
        named = self.label and self.name in ("Path", "Outline")
        return f"{self.name.lower()} {self.label}" if named else f"<{self.name}>"

    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))


_PARENTS = {
    "Think": ("",),
    "Parallel": ("", "Think", "Path"),
    "Goal": ("Parallel",),
    "Outline": ("Goal",),
    "Path": ("Parallel",),
    "Conclusion": ("Parallel",),
}
_STAGES = ("", "Goal", "Path", "Conclusion")
# What must come next in a block, by its last child.
_NEXT = {"": "<Goal>", "Goal": "<Path>", "Path": "<Path> or <Conclusion>", "Conclusion": "</Parallel>"}


class _Reader:
    """Reads a text once, tag by tag. A tag adds at most one problem for where it stands and one for its label."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.problems: list[Problem] = []
        self.stack = [_Open("", 0)]
        self.num_open = dict.fromkeys(("", *TAG_NAMES), 0)
        self.has_think = False

    def read(self) -> Trace:
        position = 0
        for tag in _TAG.finditer(self.text):
            name = tag.group(2).title()
            self._read_text(position, tag.start())
            position = self._close(name, tag) if tag.group(1) else self._open(name, tag)
        self._read_text(position, len(self.text))
        if len(self.stack) > 1:
            message = f"the text ends, but {self.stack[-1]} is still open"
            self._report(len(self.text.rstrip()), message, self._closing_tags())
            while len(self.stack) > 1:
                self._pop()
        return Trace(tuple(self.stack[0].parts))

    def _read_text(self, start: int, end: int) -> None:
        text, inside = self.text[start:end], self.stack[-1]
        if not text or text.isspace():
            return
        if inside.name not in ("Parallel", "Goal"):
            inside.parts.append(text)
            return
        expected = "<Outline> or </Goal>" if inside.name == "Goal" else _NEXT[inside.stage]
        place = end - len(text.lstrip())
        self._report(place, f"text between the tags of {inside}", f"{expected} ({inside} {self._opened(inside)})")

    def _open(self, name: str, tag: re.Match) -> int:
        """Push an open tag; return the position after it, and after its label if it has one."""
        in_place = self._find_parent(name, tag.start())
        parent = self.stack[-1]
        position, label, block = tag.end(), None, None
        if name == "Parallel":
            label = parent.label
        elif name != "Think":
            block = parent.block if in_place else _Open("Parallel", tag.start())
            block.broken |= not in_place
        if name in ("Outline", "Path"):
            match = _LABEL.match(self.text, position)
            place = match.start(1) if match else tag.start()
            label, position = (match.group(1), match.end()) if match else (None, position)
            check_label = self._check_outline_label if name == "Outline" else self._check_path_label
            label = check_label(block, label, place)
        if block is not None and name != "Outline":
            block.stage = max(block.stage, name, key=_STAGES.index)
        self.stack.append(_Open(name, tag.start(), block, label))
        self.stack[-1].broken = not in_place
        self.num_open[name] += 1
        return position

    def _find_parent(self, name: str, start: int) -> bool:
        """Whether the tag has a parent; it is then on top of the stack. Reports a tag that is out of place."""
        parents, top = _PARENTS[name], self.stack[-1]
        if top.name in parents:
            self._check_order(name, start)
            return True
        places = " or ".join(f"in <{parent}>" if parent else "at top level" for parent in parents)
        if name in ("Think", "Parallel") or not self.num_open[parents[0]]:
            where = f"in {top}, {self._opened(top)}" if top.name else "outside of a block"
            self._report(start, f"<{name}> stands {where}", f"no <{name}> here, it stands only {places}")
            top.block.broken = True
            return False
        self._report(start, f"<{name}> opens, but {top} is still open", self._closing_tags(parents[0]))
        while self.stack[-1].name not in parents:
            self._pop()
        return True

    def _check_order(self, name: str, start: int) -> None:
        block = self.stack[-1]
        if name == "Think" and self.has_think:
            self._report(start, "a second <Think>", "one <Think> in a trace")
        self.has_think |= name == "Think"
        if block.name != "Parallel":
            return
        if f"<{name}>" not in _NEXT[block.stage]:
            found = f"<{name}> after <{block.stage}>" if block.stage else f"<{name}> before <Goal>"
            found = f"a second <{name}> in a block" if block.stage == name else found
            self._report(start, found, f"{_NEXT[block.stage]} (block {self._opened(block)})")
            block.broken = True
        elif name == "Conclusion" and len(block.paths) < len(block.outlines) and not block.broken:
            found = f"<Conclusion> after {len(block.paths)} of {len(block.outlines)} paths"
            missing = block.outlines[len(block.paths)].label
            self._report(start, found, f"<Path> {missing} (block {self._opened(block)})")

    def _check_outline_label(self, block: _Open, label: str | None, place: int) -> str:
        wanted = child_label(block.label, len(block.outlines) + 1)
        if label is None:
            self._report(place, "<Outline> without a label", f"{wanted}:")
        elif label.rpartition(".")[0] != (block.label or "") and not block.broken:
            where = f"of path {block.label}" if block.label else "at top level"
            self._report(place, f"label {label} in a block {where}", f"{wanted}:")
        elif label in block.labels:
            self._report(place, f"label {label} a second time in a block", f"{wanted}:")
            label = wanted
        label = label or wanted
        block.labels.add(label)
        return label

    def _check_path_label(self, block: _Open, label: str | None, place: int) -> str | None:
        index = len(block.paths)
        if block.broken:
            return label
        if index >= len(block.outlines):
            found = f"path {label or index + 1} has no outline, the block has {len(block.outlines)}"
            self._report(place, found, f"<Conclusion> (block {self._opened(block)})")
            return label
        outline = block.outlines[index]
        if label != outline.label:
            found = f"label {label} on the path of outline {outline.label}" if label else "<Path> without a label"
            self._report(place, found, f"{outline.label}: (block {self._opened(block)})")
        return label or outline.label

    def _close(self, name: str, tag: re.Match) -> int:
        """Pop the tag that a closing tag closes, and what is still open in it; return the position after it."""
        top = self.stack[-1]
        if not self.num_open[name]:
            inside = f" ({top} {self._opened(top)})" if top.name else ""
            self._report(tag.start(), f"</{name}> closes nothing", f"no </{name}> here{inside}")
        elif top.name != name:
            expected, still_open = self._closing_tags(name), str(top)
            while self.stack[-1].name != name:
                self._pop()
            self._report(tag.start(), f"</{name}> closes {self.stack[-1]}, but {still_open} is still open", expected)
            self._pop()
        else:
            self._check_complete(top, tag.start())
            self._pop()
        return tag.end()

    def _check_complete(self, closed: _Open, place: int) -> None:
        if closed.block.broken:
            return
        if closed.name == "Goal" and not closed.block.outlines:
            self._report(place, "</Goal> closes a goal without an outline", f"<Outline> (goal {self._opened(closed)})")
            closed.block.broken = True
        elif closed.name == "Parallel" and closed.stage != "Conclusion":
            missing = {"": "<Goal>", "Goal": "<Path>", "Path": "<Conclusion>"}[closed.stage]
            expected = f"{_NEXT[closed.stage]} (block {self._opened(closed)})"
            self._report(place, f"</Parallel> closes a block without {missing}", expected)

    def _pop(self) -> None:
        """Take the innermost open tag off the stack and give what was read in it to its parent."""
        done = self.stack.pop()
        self.num_open[done.name] -= 1
        if done.name == "Outline":
            done.block.outlines.append(Outline(done.label, done.text()))
        elif done.name == "Path":
            done.block.paths.append(Path(done.label or "", tuple(done.parts)))
        elif done.name == "Conclusion":
            done.block.conclusion = done.text()
        elif done.name == "Parallel":
            self.stack[-1].parts.append(Block(tuple(done.outlines), tuple(done.paths), done.conclusion))
        elif done.name == "Think":
            self.stack[-1].parts.append(Think(tuple(done.parts)))

    def _closing_tags(self, until: str = "") -> str:
        """The closing tags that are missing before the innermost open `until` is on top; at most four are named."""
        missing: list[str] = []
        for item in islice(reversed(self.stack), 5):
            if item.name == until:
                break
            of = f" of {item}" if item.label and item.name != "Parallel" else ""
            missing.append(f"</{item.name}>" + (of + f" ({self._opened(item)})" if not missing else ""))
        return ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")

    def _opened(self, item: _Open) -> str:
        line, start = self._line(item.start)
        return f"opened on line {line}, column {item.start - start + 1}"

    @cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(newline.end() for newline in re.finditer("\n", self.text))]

    def _line(self, place: int) -> tuple[int, int]:
        """The number of the line, 1-based, and the index of its first character."""
        line = bisect_right(self._line_starts, place)
        return line, self._line_starts[line - 1]

    def _report(self, place: int, message: str, expected: str) -> None:
        line, start = self._line(place)
        begin, end = max(start, place - 60), self.text.find("\n", place, place + 40)
        cut = end < 0 and place + 40 < len(self.text)
        source = self.text[begin : place + 40 if end < 0 else end]
        if not source.isprintable():
            source = "".join(character if character.isprintable() else " " for character in source)
        before = "..." if begin > start else ""
        excerpt = f"{before}{source.rstrip()}{'...' if cut else ''}"
        column = place - start + 1
        self.problems.append(Problem(line, column, message, expected, excerpt, len(before) + place - begin + 1))
