"""Models for the chat server: one that curates the chains of the tests as it should, and worse ones.

Which stage is asked for is read off the beginning of the prompt, and which chain off the question in it, as a real
model would have to. The structure comes from `tests.curate_chains`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tests.chat_server import Fault, Reply
from tests.curate_chains import BY_QUESTION, Chain, M, P, S, blocks, leaves, original, rewritten, steps

BEGINNINGS = {
    "You read a chain of reasoning": "summary",
    "A step of a chain": "refill",
    "A question is answered step by step": "map_reduce",
    "One path of a solution": "rewrite",
    "Somebody works out one path": "independence",
}
_UNIT = re.compile(r"^\[(\d+)\] (.*)$", re.MULTILINE)


def stage_of(request: dict) -> str:
    """Of the first message, but the second question of the conversation is that for groups."""
    messages = request["messages"]
    first = messages[0]["content"]
    stage = next(stage for beginning, stage in BEGINNINGS.items() if first.startswith(beginning))
    asks_for_groups = any(m["role"] == "user" and m["content"].startswith("The steps you found") for m in messages)
    return "groups" if asks_for_groups else stage


def chain_of(request: dict) -> Chain:
    text = request["messages"][0]["content"]
    question = max((question for question in BY_QUESTION if question in text), key=len)
    return BY_QUESTION[question]


def num_complaints(request: dict) -> int:
    return sum(m["content"].startswith("This answer cannot be used") for m in request["messages"])


def competent(request: dict) -> str:
    """What a model says that does everything right, though with words around it."""
    stage, chain = stage_of(request), chain_of(request)
    if stage == "summary":
        return "<think>Let me see.</think>\n```json\n" + json.dumps(summary(chain, request)) + "\n```"
    if stage == "groups":
        return "These are independent:\n" + json.dumps(groups(chain))
    if stage == "independence":
        return '{"unknown": []}'
    prompt = request["messages"][0]["content"]
    if stage == "map_reduce":
        block = block_in(chain, prompt)
        # Backslashes of LaTeX as models write them, not twice.
        return f'{{"outlines": {json.dumps(block.outlines)}, "conclusion": "{block.conclusion}"}}'
    return path_in(chain, prompt)


# What the structure of a chain says


def summary(chain: Chain, request: dict) -> dict[str, Any]:
    units = [(int(n), text) for n, text in _UNIT.findall(request["messages"][0]["content"])]
    spans, at = {}, 0
    for leaf in leaves(chain.parts):
        num_lines = len([line for line in original(leaf.text).split("\n") if line.strip()])
        assert units[at][1].strip() == original(leaf.text).split("\n")[0].strip(), (units[at], leaf)
        spans[leaf] = [units[at][0], units[at + num_lines - 1][0]]
        at += num_lines
    return {"steps": [_step(step, spans) for step in steps(chain.parts)]}


def _step(step: S | M, spans: dict[S, list[int]]) -> dict[str, Any]:
    own = [spans[leaf] for leaf in leaves([step])]
    found: dict[str, Any] = {"title": step.title, "units": [own[0][0], own[-1][1]]}
    if isinstance(step, M):
        found["substeps"] = [_step(substep, spans) for substep in steps(step.parts)]
    return found


def groups(chain: Chain) -> dict[str, Any]:
    ids = {step: f"S{n}" for n, step in enumerate(steps(chain.parts), 1)}
    for step in list(ids):
        if isinstance(step, M):
            ids |= {sub: f"{ids[step]}.{n}" for n, sub in enumerate(steps(step.parts), 1)}
    found = [{"paths": [[ids[step] for step in path] for path in block.paths]} for block in blocks(chain.parts)]
    grouped = {id for group in found for path in group["paths"] for id in path}
    alone = [id for id in ids.values() if id not in grouped and "." not in id]
    return {"dependencies": {alone[-1]: [alone[0]]} if len(alone) > 1 else {}, "groups": found}


def block_in(chain: Chain, prompt: str) -> P:
    """The block whose paths are in the prompt: the largest that is, as an outer one holds those within it."""
    asked = prompt.partition("who do not see each other's work:")[2]
    there = [b for b in blocks(chain.parts) if all(original(leaf.text) in asked for leaf in leaves([b]))]
    return max(there, key=lambda block: len(list(leaves([block]))))


def path_in(chain: Chain, prompt: str) -> str:
    """The text of a path, rewritten; `[[block 1]]` stays where it stands."""
    text = prompt.partition("The text of this path as it stands:")[2].partition("\n\nMake this text stand alone")[0]
    text = text.strip()
    for leaf in leaves(chain.parts):
        text = text.replace(original(leaf.text), rewritten(leaf.text))
    return text


# Models that are worse


def careless(request: dict) -> str | Reply:
    """Wrong in another way at every first answer, and right when it is told so."""
    if num_complaints(request):
        return competent(request)
    stage, chain = stage_of(request), chain_of(request)
    right = competent(request)
    kind = list(BY_QUESTION).index(chain.question) % 6
    return _first_answer(stage, kind, right)


def _first_answer(stage: str, kind: int, right: str) -> str | Reply:
    anywhere = {0: Reply(""), 1: Fault.refusal(), 2: Fault.length(right[: len(right) // 2])}
    if kind in anywhere:
        return anywhere[kind]
    if stage in ("summary", "groups", "map_reduce", "independence"):
        return {3: right[: len(right) // 2], 4: "I think there are three steps.", 5: right.replace('"', "'")}[kind]
    return {
        3: f"<Path>\n1: {right}\n</Path>",  # tags
        4: right + " This is what I found, and I am sure that it is right, since I checked it carefully twice over.",
        5: f"As we saw in the previous case, {right}",
    }[kind]


def hopeless(request: dict) -> str | Reply:
    """Never right, however often it is told; in another way for every chain."""
    stage, chain = stage_of(request), chain_of(request)
    right = competent(request)
    kind = list(BY_QUESTION).index(chain.question)
    wrong = [wrong for wrong in HOPELESS if wrong[0] == stage]
    for number, (_, answer) in enumerate(wrong):
        if kind % len(HOPELESS) == HOPELESS.index(wrong[number]):
            return answer(right)
    return right


def _other_units(right: str) -> str:
    return right.replace('"units": [1, ', '"units": [2, ', 1)


def _one_outline(right: str) -> str:
    form = json.loads(right.replace("\\", "\\\\"))
    return json.dumps({**form, "outlines": form["outlines"][:1]})


HOPELESS: Sequence[tuple[str, Any]] = (
    ("summary", _other_units),
    ("groups", lambda right: right.replace('"dependencies": {', '"dependencies": {"S3": ["S2"], ')),
    ("map_reduce", _one_outline),
    ("rewrite", lambda right: right + " Path 1 has shown this already, and path 2 as well."),
    ("rewrite", lambda right: "<Path>" + right),
    ("rewrite", lambda right: "Something else altogether, of which nothing stands in the chain, at some length. " * 3),
    ("summary", lambda right: ""),
)


# Faults of the server


def faults(request: dict, n: int) -> Fault | None:
    """Every third question meets trouble when it is asked first, each kind in turn."""
    place = sum(map(ord, request["messages"][-1]["content"]))
    if n or place % 3:
        return None
    kinds = [
        Fault.status(429, retry_after="0.05"), Fault.status(500), Fault.drop(), Fault.cut_json(), Fault.drop_in_body(),
        Fault.hang(), Fault.empty_choices(), Fault.html(502), Fault.trickle(),
    ]  # fmt: skip
    return kinds[place // 3 % len(kinds)]
