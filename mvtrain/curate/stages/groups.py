"""Stage 2: which neighbouring steps, or runs of steps, need nothing of each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, field_validator

from mvtrain.curate.asking import Dialogue
from mvtrain.curate.prompts import Prompts
from mvtrain.curate.reading import read_json
from mvtrain.curate.records import Complaint, Complaints, Draft, Group, Step

NAME = "groups"
_NUMBER = re.compile(r"\s*(?:s|step|substep)?\s*(\d+(?:\.\d+)?)\s*", re.IGNORECASE)


class GroupForm(BaseModel):
    paths: list[list[str]]


class GroupsForm(BaseModel):
    dependencies: dict[str, list[str]] = {}
    groups: list[GroupForm]

    @field_validator("dependencies", mode="before")
    @classmethod
    def _as_lists(cls, value: Any) -> Any:
        """null for none, and one id without brackets."""
        if isinstance(value, dict):
            return {key: [needed] if isinstance(needed, str) else needed or [] for key, needed in value.items()}
        return {} if value is None else value


async def find_groups(draft: Draft, dialogue: Dialogue, prompts: Prompts) -> Draft:
    """Fills in `groups`; there may be none. Where there is one step only nobody is asked."""
    if len(draft.steps) == 1 and not draft.steps[0].substeps:
        return draft
    messages = (*draft.dialogue, {"role": "user", "content": prompts.fill(NAME, steps=listing(draft.steps))})
    groups = await dialogue.ask(NAME, NAME, messages, lambda answer: read_groups(answer, draft.steps))
    return replace(draft, groups=groups)


def listing(steps: Sequence[Step]) -> str:
    """The tree as the model sees it: an id and a title in each line."""
    lines = []
    for step in steps:
        lines.append(f"{step.id}: {step.title}")
        lines += [f"  {substep.id}: {substep.title}" for substep in step.substeps]
    return "\n".join(lines)


def read_groups(answer: str, steps: Sequence[Step]) -> tuple[Group, ...]:
    """Raises Complaints where a group is not one of independent neighbours."""
    form = read_json(answer, GroupsForm)
    siblings = {step.id: [s.id for s in steps] for step in steps}
    siblings |= {sub.id: [s.id for s in step.substeps] for step in steps for sub in step.substeps}
    groups = tuple(Group(tuple(tuple(map(_id, path)) for path in group.paths)) for group in form.groups)
    needs = {_id(step): [_id(needed) for needed in all_needed] for step, all_needed in form.dependencies.items()}
    unknown = sorted({id for step, needed in needs.items() for id in (step, *needed) if id not in siblings})
    complaints = [Complaint("wrong groups", f"dependencies: there is no step {', '.join(unknown)}")] if unknown else []
    complaints += [c for group in groups for c in _faults(group, siblings, needs)]
    members = [id for group in groups for path in group.paths for id in path]
    twice = sorted({id for id in members if members.count(id) > 1})
    if twice:
        complaints.append(Complaint("wrong groups", f"in more than one path: {', '.join(twice)}"))
    if complaints:
        raise Complaints(complaints)
    return tuple(sorted(groups, key=lambda group: siblings[group.paths[0][0]].index(group.paths[0][0])))


def _id(text: str) -> str:
    """`S2.1`, also of `step 2.1` and ` s2.1`."""
    found = _NUMBER.fullmatch(text)
    return f"S{found[1]}" if found else text


def _faults(
    group: Group, siblings: Mapping[str, Sequence[str]], dependencies: Mapping[str, Sequence[str]]
) -> Iterator[Complaint]:
    shown = " | ".join(", ".join(path) or "nothing" for path in group.paths)
    members = [id for path in group.paths for id in path]
    unknown = [id for id in members if id not in siblings]
    if unknown:
        yield Complaint("wrong groups", f"group {shown}: there is no step {', '.join(unknown)}")
        return
    if len(group.paths) < 2 or not all(group.paths):
        yield Complaint("wrong groups", f"group {shown}: expected at least two paths, none of them empty")
        return
    level = siblings[members[0]]
    if any(siblings[id] != level for id in members):
        yield Complaint("wrong groups", f"group {shown}: steps and substeps, or substeps of different steps, are mixed")
        return
    start = level.index(members[0])
    if list(level[start : start + len(members)]) != members:
        yield Complaint("wrong groups", f"group {shown}: expected neighbours in the order of the chain, none left out")
    path_of = {id: number for number, path in enumerate(group.paths) for id in path}
    for id in members:
        for needed in _all_needed(id, dependencies):
            if path_of.get(needed, path_of[id]) != path_of[id]:
                yield Complaint("dependent", f"group {shown}: {id} needs {needed}, which is on another path")


def _all_needed(id: str, dependencies: Mapping[str, Sequence[str]]) -> list[str]:
    """What a step needs, and what that needs, and so on, in order of discovery.

    What a substep needs its step needs, and whoever needs a step needs its substeps.
    """
    found: dict[str, None] = {}
    todo = [id]
    while todo:
        now = todo.pop()
        for name, needed in dependencies.items():
            if name == now or name.startswith(f"{now}."):
                new = [n for one in needed for n in (one, one.partition(".")[0]) if n not in found and n != id]
                found.update(dict.fromkeys(new))
                todo += [n for n in new if not (id + ".").startswith(n + ".")]
    return [n for n in found if not n.startswith(f"{id}.") and not id.startswith(f"{n}.")]
