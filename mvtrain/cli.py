"""`mvtrain <command>`: a table of commands. Each command's imports happen only when it is called."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from mvtrain import __version__

COMMANDS = {
    "convert": "turn an autoregressive checkpoint into one that knows the tags",
    "check": "check trace files and print their statistics",
    "curate": "turn sequential chains of thought into traces, through any OpenAI-compatible endpoint",
    "prepare": "write training and evaluation data",
    "plan": "say whether a training run fits into memory, and how long it takes",
    "generate": "answer prompts in parallel and show the tree",
    "verify": "compare the engine with the training forward pass",
    "evaluate": "measure accuracy, form, parallelism and speed, and write a report",
    "view": "look at traces in the browser",
}
"""Command -> one line for `mvtrain --help`. `mvtrain/commands/NAME.py` has `add_arguments(parser)` and `run(args)`."""

SUBCOMMANDS = ("evaluate compare", "evaluate regrade", "evaluate report", "evaluate overlap", "prepare synthetic")
"""Two words that are a command of their own, in `mvtrain/commands/NAME_SUBNAME.py`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. A user's mistake (ValueError, OSError) ends in one line and status 2, without a traceback."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        _print_help()
        return 0
    if argv[0] == "--version":
        print(f"mvtrain {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        print(f"mvtrain: unknown command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if rest and f"{name} {rest[0]}" in SUBCOMMANDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
    command = importlib.import_module(f"mvtrain.commands.{name.replace(' ', '_')}")
    parser = argparse.ArgumentParser(prog=f"mvtrain {name}", description=command.__doc__)
    command.add_arguments(parser)
    try:
        return command.run(parser.parse_args(rest))
    except (ValueError, OSError, ImportError) as error:
        print(f"mvtrain {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mvtrain {name}: interrupted", file=sys.stderr)
        return 130


def _print_help() -> None:
    print("usage: mvtrain COMMAND [options]\n")
    print("Turn autoregressive language models into Multiverse models.\n\ncommands:")
    for name, summary in COMMANDS.items():
        print(f"  {name:<10} {summary}")
    print("\n`mvtrain COMMAND --help` shows a command's options. Training: `deepspeed launch/sft.py RECIPE.yaml`.")


if __name__ == "__main__":
    sys.exit(main())
