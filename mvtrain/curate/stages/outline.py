"""Stage 3: the outline. What runs in parallel follows from tree and groups, so nobody has to be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mvtrain.curate.records import Branching, Draft, Group, Part, Step

NAME = "outline"


def draw_outline(draft: Draft) -> Draft:
    """Fills in `outline`: steps in a row, and blocks where groups are; one of substeps stands where its step would."""
    groups = {group.paths[0][0]: group for group in draft.groups}
    return replace(draft, outline=_parts(draft.steps, groups, ""))


def _parts(steps: Sequence[Step], groups: Mapping[str, Group], around: str) -> tuple[Part, ...]:
    """`around` is the label of the path that the steps are in, with a point behind it."""
    by_id = {step.id: step for step in steps}
    parts: list[Part] = []
    passed: set[str] = set()
    num_blocks = 0
    for step in steps:
        if step.id in passed:
            continue
        if step.id in groups:
            num_blocks += 1
            label = f"{around}{num_blocks}"
            group = groups[step.id]
            passed.update(id for path in group.paths for id in path)
            parts.append(Branching(label, tuple(_path([by_id[id] for id in path], groups, label, number)
                                                for number, path in enumerate(group.paths, 1))))  # fmt: skip
        elif _has_group(step, groups):
            inner = _parts(step.substeps, groups, f"{around}{step.id}.")
            parts += inner
        else:
            parts.append(step)
    return tuple(parts)


def _path(steps: Sequence[Step], groups: Mapping[str, Group], block: str, number: int) -> tuple[Part, ...]:
    parts: list[Part] = []
    for step in steps:
        if _has_group(step, groups):
            parts += _parts(step.substeps, groups, f"{block}.{number}.{step.id}.")
        else:
            parts.append(step)
    return tuple(parts)


def _has_group(step: Step, groups: Mapping[str, Group]) -> bool:
    return any(substep.id in groups for substep in step.substeps)


def blocks_of(outline: Sequence[Part]) -> Iterator[Branching]:
    """All blocks, each before those in its paths."""
    for part in outline:
        if isinstance(part, Branching):
            yield part
            for path in part.paths:
                yield from blocks_of(path)


def leaves_of(outline: Sequence[Part]) -> Iterator[Step]:
    """All steps of the outline, in the order of the chain."""
    for part in outline:
        if isinstance(part, Branching):
            for path in part.paths:
                yield from leaves_of(path)
        else:
            yield part


def outline_text(outline: Sequence[Part], depth: int = 0) -> str:
    """The outline with its blocks, for people."""
    lines = []
    for part in outline:
        if isinstance(part, Branching):
            lines.append(f"{'  ' * depth}<Parallel>")
            for path in part.paths:
                lines += [f"{'  ' * depth}<Path>", outline_text(path, depth + 1), f"{'  ' * depth}</Path>"]
            lines.append(f"{'  ' * depth}</Parallel>")
        else:
            lines.append(f"{'  ' * depth}{part.id}: {part.title}")
    return "\n".join(lines)
