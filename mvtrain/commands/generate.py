"""Answer prompts with a Multiverse checkpoint, paths in parallel.

In a terminal the paths are shown while they are written, side by side, and then each answer as a tree. To a pipe goes
one JSON object for each event (fork, text, end, join, finish), as it happens, and a summary at the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvtrain.engine import Completion, Engine, Event, SamplingParams


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mvtrain generate CHECKPOINT --prompt TEXT [options]"
    parser.formatter_class = functools.partial(argparse.HelpFormatter, max_help_position=36, width=120)
    parser.add_argument("checkpoint", help="folder of a converted or trained checkpoint")
    add = parser.add_argument_group("prompts and output").add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="a question; may be repeated")
    add("--prompts-file", metavar="FILE", help='JSONL, one object with "prompt" or "question" a line')
    add("--n", type=int, default=1, help="answers to each prompt (default: 1)")
    add("--format", choices=["live", "tree", "events", "answers"],
        help="default: live in a terminal, events to a pipe; answers: one JSON object an answer")  # fmt: skip
    add("--json", action="store_const", const="answers", dest="format", help="the same as --format answers")
    add("--trace", metavar="FILE", help="write each answer with positions, visibility and log-probabilities (JSONL)")
    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=float, default=0.0, help="0 takes the most probable token (default)")
    add("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    add("--top-k", type=int, default=0, help="sample from so many tokens (default: 0, all)")
    add("--min-p", type=float, default=0.0, help="at least this share of the best probability (default: 0, off)")
    add("--repetition-penalty", type=float, default=1.0, help="above 1 makes repetition rarer (default: 1, off)")
    add("--seed", type=int, default=0, help="same seed, same answers (default: 0)")
    add("--stop", action="append", default=[], metavar="TEXT", help="ends an answer, or a path; may be repeated")
    add("--logprobs", type=int, default=0, metavar="K", help="with --trace: the K most probable tokens everywhere")
    add("--sequential", action="store_true", help="ask for sequential steps and fork nothing")
    add = parser.add_argument_group("budgets").add_argument
    add("--max-tokens", type=int, default=1024, help="length of the critical path (default: 1024)")
    add("--max-total-tokens", type=int, help="all paths together (default: 8 times --max-tokens)")
    add("--max-path-tokens", type=int, help="one path (default: no limit of its own)")
    add("--max-paths", type=int, default=64, help="of a block (default: 64)")
    add("--max-depth", type=int, default=4, help="of nested blocks (default: 4)")
    add = parser.add_argument_group("engine").add_argument
    add("--scheme", choices=["isolated", "original"], help="default: what the checkpoint says")
    add("--dtype", choices=["fp32", "fp64", "bf16", "fp16"], help="default: that of the checkpoint")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--max-batch", type=int, default=32, help="answers that are written at a time (default: 32)")
    add("--cache-tokens", type=int, help="room of the KV cache (default: what half of the free memory holds)")


def run(args: argparse.Namespace) -> int:
    prompts = list(args.prompt) + (list(read_prompts(args.prompts_file)) if args.prompts_file else [])
    if not prompts:
        raise ValueError("nothing to answer: give --prompt TEXT or --prompts-file FILE.jsonl")
    form = args.format or ("live" if sys.stdout.isatty() else "events")
    from mvtrain.engine import Engine

    params = _params(args)
    with ExitStack() as stack:
        trace = stack.enter_context(open(args.trace, "w", encoding="utf-8")) if args.trace else None
        engine = Engine.from_pretrained(
            args.checkpoint, args.dtype, args.device, args.scheme, args.max_batch, args.cache_tokens
        )
        try:
            return _answer(engine, prompts, params, form, trace)
        except BrokenPipeError:  # whoever read has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1


def _params(args: argparse.Namespace) -> SamplingParams:
    from mvtrain.engine import SamplingParams

    return SamplingParams(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        stop=tuple(args.stop),
        n=args.n,
        max_tokens=args.max_tokens,
        max_total_tokens=args.max_total_tokens,
        max_path_tokens=args.max_path_tokens,
        max_paths=args.max_paths,
        max_depth=args.max_depth,
        num_logprobs=args.logprobs,
        seed=args.seed,
        parallel=not args.sequential,
    )


def _answer(engine: Engine, prompts: list[str], params: SamplingParams, form: str, trace: Any) -> int:
    from mvtrain.engine.summary import summarise_run

    asked = [prompt for prompt in prompts for _ in range(params.n)]
    began = time.perf_counter()
    output = _OUTPUTS[form](asked)
    completions: dict[int, Completion] = {}
    try:
        with output:
            for event in engine.stream(prompts, params):
                output.tell(event)
                if event.completion is not None:
                    completions[event.request] = event.completion
                    _write_trace(trace, asked[event.request], event.completion, engine.markup.decode)
    except KeyboardInterrupt:
        output.interrupted()
        raise
    answers = [completions[k] for k in range(len(asked))]
    output.close(answers, summarise_run(engine, answers, time.perf_counter() - began))
    return 0


def _write_trace(trace: Any, prompt: str, completion: Completion, decode: Callable[[list[int]], str]) -> None:
    """With `ends`, the characters of the text up to the end of every token, `mvtrain view` needs no tokenizer."""
    from mvtrain.engine.detokenizer import token_ends

    if trace is not None:
        ends = token_ends(completion.token_ids, completion.text, decode)
        row = {"prompt": prompt, **completion.as_dict(tokens=True), "ends": ends}
        trace.write(json.dumps(row, ensure_ascii=False) + "\n")
        trace.flush()


class _Output:
    """What is shown of a run. The base class shows the progress where people look at it, and nothing else."""

    def __init__(self, prompts: list[str]) -> None:
        self.prompts = prompts
        self.num_finished = self.num_tokens = 0
        self.told = 0.0

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def tell(self, event: Event) -> None:
        self.num_finished += event.kind == "finish"
        self.num_tokens += event.num_tokens
        is_last = self.num_finished == len(self.prompts)
        if sys.stderr.isatty() and (is_last or time.monotonic() - self.told > 0.2):
            self.told = time.monotonic()
            text = f"\r{self.num_finished}/{len(self.prompts)} answers, {self.num_tokens} tokens"
            print(text, end="\n" if is_last else "", file=sys.stderr, flush=True)

    def interrupted(self) -> None:
        pass

    def close(self, answers: list[Completion], summary: Any) -> None:
        raise NotImplementedError


class _Answers(_Output):
    """One JSON object an answer."""

    def close(self, answers: list[Completion], summary: Any) -> None:
        for prompt, completion in zip(self.prompts, answers, strict=True):
            print(json.dumps({"prompt": prompt, **completion.as_dict()}, ensure_ascii=False))


class _Events(_Output):
    """One JSON object an event, as it happens."""

    def tell(self, event: Event) -> None:
        super().tell(event)
        print(json.dumps(event.as_dict(), ensure_ascii=False), flush=True)

    def close(self, answers: list[Completion], summary: Any) -> None:
        print(json.dumps({"kind": "summary", **summary.as_dict()}), flush=True)


class _Tree(_Output):
    """Each answer as a tree, when all are there."""

    def close(self, answers: list[Completion], summary: Any) -> None:
        from mvtrain.commands.answer_tree import print_tree

        for prompt, completion in zip(self.prompts, answers, strict=True):
            print_tree(prompt, completion)
        print(summary.as_text())


class _Live(_Tree):
    """The paths while they are written, then the trees."""

    def __init__(self, prompts: list[str]) -> None:
        from mvtrain.commands.live_view import LiveTerminal, LiveView

        super().__init__(prompts)
        self.view = LiveView(prompts)
        self.terminal = LiveTerminal(self.view)

    def __enter__(self) -> _Output:
        self.terminal.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.terminal.__exit__(*error)

    def tell(self, event: Event) -> None:
        self.view.tell(event)
        self.terminal.draw()

    def interrupted(self) -> None:
        from rich.console import Console

        Console().print(self.view)


_OUTPUTS = {"answers": _Answers, "events": _Events, "tree": _Tree, "live": _Live}


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
