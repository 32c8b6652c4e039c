"""A finished answer as a tree: texts, blocks, paths with their tokens, conclusions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.tree import Tree

from mvtrain.commands.plain_text import plain
from mvtrain.grammar import Block, Think

if TYPE_CHECKING:
    from mvtrain.engine import Completion


def print_tree(prompt: str, completion: Completion) -> None:
    """Print one answer, its figures, and what was wrong with it."""
    tree = Tree(plain(prompt, "bold"))
    if completion.trace is None:
        tree.add(plain(completion.text))
    else:
        _add_parts(tree, completion.trace.parts, iter(completion.num_path_tokens))
    console = Console(highlight=False)
    console.print(tree)
    summary = (
        f"{completion.num_generated} tokens, {completion.critical_path} on the critical path, "
        f"parallelism {completion.parallelism:.2f}, {completion.seconds:.1f} s, finished by {completion.finish_reason}"
    )
    console.print(plain(summary, "green"))
    for problem in completion.problems:
        console.print(plain(f"problem: {problem}", "yellow"))


def _add_parts(tree: Tree, parts: tuple, path_tokens: Iterator[int]) -> None:
    for part in parts:
        if isinstance(part, str):
            tree.add(plain(part))
        elif isinstance(part, Think):
            _add_parts(tree.add(plain("think", "dim")), part.parts, path_tokens)
        else:
            _add_block(tree, part, path_tokens)


def _add_block(tree: Tree, block: Block, path_tokens: Iterator[int]) -> None:
    branch = tree.add(plain(f"block of {len(block.paths)} paths", "cyan"))
    for outline, path in zip(block.outlines, block.paths, strict=True):
        count = next(path_tokens, None)  # None: the model wrote the block, but it was not forked
        tokens = "sequential" if count is None else f"{count} tokens"
        title = plain(f"path {path.label}: {outline.text} ({tokens})", "cyan")
        _add_parts(branch.add(title), path.parts, path_tokens)
    branch.add(plain(f"conclusion: {block.conclusion}"))
