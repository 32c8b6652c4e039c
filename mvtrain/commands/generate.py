"""Answer prompts with a Multiverse checkpoint, paths in parallel, and show the tree of every answer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine import Completion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="a question; may be repeated")
    parser.add_argument("--prompts-file", metavar="FILE", help='JSONL, one object with "prompt" or "question" a line')
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    parser.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    parser.add_argument("--top-k", type=int, default=0, help="sample from so many tokens (default: 0, all)")
    parser.add_argument("--max-tokens", type=int, default=1024, help="length of the critical path (default: 1024)")
    parser.add_argument("--max-total-tokens", type=int, help="all paths together (default: 8 times --max-tokens)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same answers (default: 0)")
    parser.add_argument("--sequential", action="store_true", help="ask for sequential steps and fork nothing")
    parser.add_argument("--scheme", choices=["isolated", "original"], help="default: what the checkpoint says")
    parser.add_argument("--dtype", choices=["fp32", "fp64", "bf16", "fp16"], help="default: that of the checkpoint")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--max-batch", type=int, default=32, help="prompts that run at a time (default: 32)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of trees")


def run(args: argparse.Namespace) -> int:
    prompts = list(args.prompt) + (list(read_prompts(args.prompts_file)) if args.prompts_file else [])
    if not prompts:
        raise ValueError("nothing to answer: give --prompt TEXT or --prompts-file FILE.jsonl")
    from mvtrain.engine import Engine, SamplingParams

    params = SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        max_tokens=args.max_tokens,
        max_total_tokens=args.max_total_tokens,
        seed=args.seed,
        parallel=not args.sequential,
    )
    engine = Engine.from_pretrained(args.checkpoint, args.dtype, args.device, args.scheme, args.max_batch)
    completions = engine.generate(prompts, params, progress=_show_progress if sys.stderr.isatty() else None)
    for prompt, completion in zip(prompts, completions, strict=True):
        if args.json:
            print(json.dumps(as_dict(prompt, completion), ensure_ascii=False))
        else:
            print_tree(prompt, completion)
    return 0


def read_prompts(file: str) -> Iterator[str]:
    """The prompts of a JSONL file. Raises ValueError that names the line."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{file}, line {number}: not JSON ({error})") from None
            prompt = row.get("prompt", row.get("question")) if isinstance(row, dict) else None
            if not isinstance(prompt, str):
                raise ValueError(
                    f'{file}, line {number}: expected an object with a "prompt" or "question" that is text'
                )
            yield prompt


def as_dict(prompt: str, completion: Completion) -> dict[str, Any]:
    """What `--json` prints of one answer."""
    fields = ("text", "finish_reason", "num_generated", "num_forced", "critical_path", "parallelism", "num_path_tokens")
    fields += ("problems", "num_passes", "seconds")
    return {"prompt": prompt, **{name: getattr(completion, name) for name in fields}}


def print_tree(prompt: str, completion: Completion) -> None:
    """One answer as a tree: texts, blocks, paths with their tokens, conclusions. Nothing of it is taken for markup."""
    from rich.console import Console
    from rich.tree import Tree

    tree = Tree(_plain(prompt, "bold"))
    if completion.trace is None:
        tree.add(_plain(completion.text))
    else:
        _add_parts(tree, completion.trace.parts, iter(completion.num_path_tokens))
    console = Console(highlight=False)
    console.print(tree)
    summary = (
        f"{completion.num_generated} tokens, {completion.critical_path} on the critical path, "
        f"parallelism {completion.parallelism:.2f}, {completion.seconds:.1f} s, finished by {completion.finish_reason}"
    )
    console.print(_plain(summary, "green"))
    for problem in completion.problems:
        console.print(_plain(f"problem: {problem}", "yellow"))


def _add_parts(tree: Any, parts: tuple, path_tokens: Iterator[int]) -> None:
    from mvtrain.grammar import Think

    for part in parts:
        if isinstance(part, str):
            tree.add(_plain(part))
        elif isinstance(part, Think):
            _add_parts(tree.add(_plain("think", "dim")), part.parts, path_tokens)
        else:
            _add_block(tree, part, path_tokens)


def _add_block(tree: Any, block: Any, path_tokens: Iterator[int]) -> None:
    branch = tree.add(_plain(f"block of {len(block.paths)} paths", "cyan"))
    for outline, path in zip(block.outlines, block.paths, strict=True):
        count = next(path_tokens, None)  # None: the model wrote the block, but it was not forked
        tokens = "sequential" if count is None else f"{count} tokens"
        title = _plain(f"path {path.label}: {outline.text} ({tokens})", "cyan")
        _add_parts(branch.add(title), path.parts, path_tokens)
    branch.add(_plain(f"conclusion: {block.conclusion}"))


def _plain(text: str, style: str = "") -> Any:
    """Text that rich prints as it is: no markup, no terminal escape sequences."""
    from rich.text import Text

    return Text(text.replace("\x1b", "\N{SYMBOL FOR ESCAPE}"), style=style)


def _show_progress(num_finished: int, num_requests: int, num_tokens: int) -> None:
    end = "\n" if num_finished == num_requests else ""
    print(f"\r{num_finished}/{num_requests} answers, {num_tokens} tokens", end=end, file=sys.stderr, flush=True)
