"""A trace as the viewer shows it: text, samples of an evaluation and traced completions become viewer records.

A record is plain data: title, question, response, problems, figures, and `tokens` as `records.token_details` has it,
or None where the text is shown without positions. Tokens of plain text are real ones where a tokenizer is given. Else
they are words (`unit` says so): a tag is one, so is a run of letters, digits and underscores, so is any other visible
character, as in `mvtrain check`; white space goes with the word that follows it.

Shape suffixes: T tokens of the response.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from mvtrain.engine.detokenizer import token_ends
from mvtrain.grammar import TAGS, check
from mvtrain.layout import Layout, LayoutError, Node, Scheme, TagIds

DEEPEST = 32
"""Blocks in each other that the viewer lays out; deeper ones are no trace that anybody reads."""

_WORD = re.compile(r"\s*(</?(?:Think|think|Parallel|Goal|Outline|Path|Conclusion)>|\w+|[^\w\s])")
_LABEL = re.compile(r"\s*([0-9]+(?:\.[0-9]+)*)\s*:")
_WORD_TAGS = TagIds(*range(len(TAGS)))
# The tags of a block in the order in which they come; the tags behind an open one's stage close it.
_ORDER = ("parallel", "goal", "end_goal", "path", "end_path", "conclusion", "end_conclusion", "end_parallel")
_FIGURES = (
    "correct", "answer", "reference", "reason", "mode", "finish_reason", "num_generated", "critical_path",
    "parallelism", "num_blocks", "num_forced", "num_forced_closes", "num_passes", "seconds", "budget", "seed",
)  # fmt: skip


def record_of_text(
    title: str,
    question: str,
    text: str,
    tokenizer: Any = None,
    scheme: Scheme = "isolated",
    figures: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The record of a trace that is plain text, such as training data. Text with faults is shown with its problems.

    Raises ValueError where the tokenizer lacks the tags.
    """
    tokens = text_tokens(text, tokenizer, scheme)
    problems = [f"{problem}; expected {problem.expected}" for problem in check(text)]
    return {
        "title": title,
        "question": question,
        "response": text,
        "problems": problems,
        "figures": {**_counts(tokens), **(figures or {})},
        "tokens": tokens,
    }


def _counts(tokens: dict[str, Any] | None) -> dict[str, Any]:
    if not tokens or not tokens["positions"]:
        return {}
    num_tokens, critical_path = len(tokens["positions"]), max(tokens["positions"]) + 1
    counts = {tokens["unit"]: num_tokens, "critical_path": critical_path, "parallelism": num_tokens / critical_path}
    return counts | {"paths": len(tokens["branches"]) - 1}


def record_of_sample(
    title: str, row: dict[str, Any], tokenizer: Any = None, scheme: Scheme = "isolated"
) -> dict[str, Any]:
    """The record of a sample of `mvtrain evaluate`. A sample whose tokens were not kept is laid out as plain text."""
    response, tokens = _text(row, "response"), row.get("tokens")
    figures = {name: row[name] for name in _FIGURES if row.get(name) is not None or (name == "correct" and name in row)}
    if not tokens:
        tokens = text_tokens(response, tokenizer, scheme)
    if "parallelism" not in figures and figures.get("critical_path"):
        figures["parallelism"] = figures.get("num_generated", 0) / figures["critical_path"]
    return _checked(title, row.get("question"), response, row.get("problems"), figures, tokens)


def record_of_completion(title: str, row: dict[str, Any], tokenizer: Any = None) -> dict[str, Any]:
    """The record of a line of `mvtrain generate --trace`.

    Which text a token stands for is taken from `ends` where the line has them, else from the tokenizer; without either
    the lanes are shown, but not single tokens.
    """
    text = _text(row, "text")
    figures = {name: row[name] for name in _FIGURES if row.get(name) not in (None, "")}
    ends = row.get("ends")
    if ends is None and tokenizer is not None:
        ends = token_ends(row["token_ids"], text, _decoder(tokenizer))
    tokens = {
        "num_prompt": len(row.get("prompt_ids") or []),
        "ends": ends,
        "branches": row.get("branches"),
        "token_branches": row.get("token_branches"),
        "positions": row.get("position_ids"),
        "logprobs": row.get("logprobs"),
        "passes": row.get("passes"),
        "nodes": [_node(node) for node in row.get("nodes") or []],
        "scheme": row.get("scheme"),
    }
    return _checked(title, row.get("prompt"), text, row.get("problems"), figures, tokens)


def _node(node: Any) -> list[Any]:
    return [node[name] for name in ("start", "end", "position", "sees")] if isinstance(node, dict) else list(node)


def _text(row: dict[str, Any], name: str) -> str:
    if not isinstance(row.get(name), str):
        raise ValueError(f"column {name!r} holds {type(row.get(name)).__name__}, expected text")
    return row[name]


def _checked(
    title: str, question: Any, response: str, problems: Any, figures: dict[str, Any], tokens: dict[str, Any] | None
) -> dict[str, Any]:
    """A record of data that a file gave: tokens that do not fit together are left out, and that is a problem."""
    problems = [str(problem) for problem in problems or []]
    try:
        fault = tokens and fault_of_tokens(tokens, len(response))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        problems.append(f"the tokens are not shown, since they do not fit together: {fault}")
    return {
        "title": title,
        "question": question if isinstance(question, str) else "",
        "response": response,
        "problems": problems,
        "figures": figures,
        "tokens": None if fault else tokens,
    }


def fault_of_tokens(tokens: dict[str, Any], num_characters: int) -> str | None:
    """What is wrong with token details (see `records.token_details`), or None.

    Raises TypeError, ValueError, KeyError, IndexError or AttributeError where they have another shape altogether.
    """
    positions, branches, nodes = tokens["positions"], tokens["branches"], tokens["nodes"]
    num_tokens, num_prompt = len(positions), tokens["num_prompt"]
    for name in ("ends", "token_branches", "logprobs", "passes"):
        values = tokens.get(name)
        if values is None and name != "token_branches":
            continue
        if len(values) != num_tokens:
            return f"{len(values)} `{name}` for {num_tokens} `positions`"
        if not all(isinstance(value, (int, float)) or (value is None and name == "logprobs") for value in values):
            return f"`{name}` holds something that is no number"
    ends = tokens.get("ends") or [0]
    if min(ends) < 0 or max(ends) > num_characters or any(a > b for a, b in pairwise(ends)):
        return f"`ends` do not ascend from 0 to at most {num_characters}, the characters of the response"
    if min(positions, default=num_prompt) < num_prompt:
        return f"position {min(positions)} is in the prompt of {num_prompt} tokens"
    for number, branch in enumerate(branches):
        if number and (not 0 <= branch["parent"] < number or len(branch["lineage"]) < 2):
            return f"branch {number} is no path of one before it"
        if len(branch["lineage"]) > 2 * DEEPEST:
            return f"branch {number} is in more than {DEEPEST} blocks"
    if not all(0 <= branch < len(branches) for branch in tokens["token_branches"]):
        return f"a token is of none of the {len(branches)} branches"
    edges = [0, *(end for _, end, _, _ in nodes)]
    if edges[-1] != num_prompt + num_tokens or any(n[0] != edge for n, edge in zip(nodes, edges, strict=False)):
        return f"`nodes` do not cover tokens 0 to {num_prompt + num_tokens}"
    if not all(0 <= a <= b <= start for start, _, _, sees in nodes for a, b in sees):
        return "a node sees tokens that do not come before it"
    return None


def text_tokens(text: str, tokenizer: Any = None, scheme: Scheme = "isolated") -> dict[str, Any] | None:
    """Token details of plain text, or None where its tags cannot be laid out.

    Blocks that are open where the text ends are laid out as far as they go, as those of a completion are.
    """
    if tokenizer is None:
        ids, ends, tags, unit = *_words(text), _WORD_TAGS, "words"
    else:
        tags, unit = TagIds.from_tokenizer(tokenizer), "tokens"
        ids, ends = _encode(tokenizer, text)
    try:
        nodes = _nodes(ids, tags, scheme)
    except LayoutError:
        return None
    branches, token_branches = _branches(text, ids, ends, tags, scheme)
    if max(len(branch["lineage"]) for branch in branches) > 2 * DEEPEST:
        return None
    positions = [node.position + i for node in nodes for i in range(node.end - node.start)]
    return {
        "num_prompt": 0,
        "ends": ends,
        "branches": branches,
        "token_branches": token_branches,
        "positions": positions,
        "logprobs": None,
        "passes": None,
        "nodes": [[n.start, n.end, n.position, [list(seen) for seen in n.sees]] for n in nodes],
        "scheme": scheme,
        "unit": unit,
    }


def _words(text: str) -> tuple[list[int], list[int]]:
    """(T,) ids, those of tags below 12 and 12 for any other word; (T,) ends."""
    number = {tag: i for i, tag in enumerate(TAGS)}
    words = list(_WORD.finditer(text))
    ends = [word.end() for word in words]
    if ends:
        ends[-1] = len(text)  # with the white space behind it
    return [number.get(word.group(1), len(TAGS)) for word in words], ends


def _encode(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """(T,) ids and (T,) ends."""
    if not getattr(tokenizer, "is_fast", False):
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids, token_ends(ids, text, _decoder(tokenizer))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = list(encoded["input_ids"]), encoded["offset_mapping"]
    # Tokens within one character all have the place of the character; it is counted with the last of them.
    followers = [*(start for start, _ in places[1:]), len(text)]
    ends: list[int] = []
    for (_, end), follower in zip(places, followers, strict=True):
        ends.append(max(min(end, follower), ends[-1] if ends else 0))
    return ids, ends


def _decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    # The tags are special tokens: skipping those would drop the structure.
    return lambda ids: tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _nodes(ids: Sequence[int], tags: TagIds, scheme: Scheme) -> list[Node]:
    """The nodes of the layout, up to the end of `ids` where blocks are open there."""
    closed = Layout.from_ids([*ids, *_closing_tags(ids, tags)], tags, scheme)
    return [Node(n.start, min(n.end, len(ids)), n.position, n.sees) for n in closed.nodes if n.start < len(ids)]


def _closing_tags(ids: Sequence[int], tags: TagIds) -> list[int]:
    """The tags that would close the blocks that are open at the end of ids whose tags nest so far."""
    kinds = {getattr(tags, kind): kind for kind in _ORDER}
    stages: list[str] = []
    for kind in (kinds[id] for id in ids if id in kinds):
        if kind == "parallel":
            stages.append(kind)
        elif stages and kind == "end_parallel":
            stages.pop()
        elif stages:
            stages[-1] = kind
    return [getattr(tags, kind) for stage in reversed(stages) for kind in _ORDER[_ORDER.index(stage) + 1 :]]


def _branches(
    text: str, ids: Sequence[int], ends: Sequence[int], tags: TagIds, scheme: Scheme
) -> tuple[list[dict[str, Any]], list[int]]:
    """The top level and every path, and (T,) the branch of every token, of ids that can be laid out.

    A separator before a path is the path's in the scheme `isolated`; in `original` it is of the branch around it.
    """
    branches = [{"lineage": [], "label": None, "parent": None, "num_tokens": 0, "ended_by": ""}]
    token_branches: list[int] = []
    open_branches, num_blocks, num_paths = [0], [0], []  # of the top level and the open paths; of the open blocks
    separator = 0
    for i, id in enumerate(ids):
        token_branches.append(open_branches[-1])
        if id == tags.parallel:
            num_paths.append(0)
            num_blocks[-1] += 1
        elif id == tags.path:
            parent = open_branches[-1]
            lineage = [*branches[parent]["lineage"], num_blocks[-1] - 1, num_paths[-1]]
            label = _LABEL.match(text, ends[i])
            branches.append(
                {"lineage": lineage, "label": label and label.group(1), "parent": parent, "ended_by": "end_of_text"}
            )
            num_paths[-1] += 1
            open_branches.append(len(branches) - 1)
            num_blocks.append(0)
            begin = separator if scheme == "isolated" else i
            token_branches[begin:] = [open_branches[-1]] * (i + 1 - begin)
        elif id == tags.end_path:
            branches[open_branches.pop()]["ended_by"] = "end_path"
            num_blocks.pop()
        elif id == tags.end_parallel:
            num_paths.pop()
        if id in (tags.end_goal, tags.end_path):
            separator = i + 1
    counts = Counter(token_branches)
    for number, branch in enumerate(branches):
        branch["num_tokens"] = counts[number]
    return branches, token_branches
