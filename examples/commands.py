"""Running the project's own commands, as users do, from the examples."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
record: Path | None = None
"""Where every command that has worked is written down, once."""


def run(*command: str, capture: bool = False) -> str:
    """Show a command, run it at the project's root, and say how long it took; files are given by absolute paths.

    Returns what it printed if that is to be captured.

    Raises SystemExit where it fails; its own message stands above.
    """
    line = as_typed(command)
    print(f"\n$ {line}", flush=True)
    start = time.time()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    program = shutil.which(command[0]) or str(Path(sys.executable).with_name(command[0]))
    stdout = subprocess.PIPE if capture else None
    done = subprocess.run([program, *command[1:]], cwd=ROOT, env=env, text=True, stdout=stdout)
    if done.returncode:
        raise SystemExit(f"this failed with status {done.returncode}, see its message above:\n  {line}")
    print(f"({time.time() - start:.0f} s)", flush=True)
    if record:
        _write_down(line, record)
    return done.stdout or ""


def as_typed(command: Sequence[str]) -> str:
    """A command as one types it at the project's root: without this machine's folders and the port of one training."""
    line = shlex.join(command).replace(sys.executable, "python").replace(f"{ROOT}/", "")
    return re.sub(r"--master_port \d+ ", "", line)


def _write_down(line: str, file: Path) -> None:
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    if line not in known.splitlines():
        file.write_text(known + line + "\n", encoding="utf-8")


def train(recipe: str, *flags: str, ranks: int = 2) -> None:
    """`deepspeed launch/sft.py` on a recipe of `launch/recipes`, on processes of this machine."""
    launcher = ["deepspeed", "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    run(*launcher, str(ROOT / "launch" / "sft.py"), str(ROOT / "launch" / "recipes" / recipe), *flags)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
