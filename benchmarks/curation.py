"""What `mvtrain curate` costs itself, apart from the model: CPU time a record, and memory over many records.

    python -m benchmarks.curation --records 1000 --concurrency 64

A server in a process of its own plays a model that answers at once. The same number of requests of the same size is
sent by the openai library alone; what curating takes beyond that is our own: stages, checks, cache, journal, progress.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measure import write_results
from tests.chat_server import child_server
from tests.curate_chains import CHAINS

ROOT = Path(__file__).parents[1]
PLAYS = "tests.curate_model:competent"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, child_server(PLAYS) as url:
        source = write_source(Path(folder) / "chains.jsonl", args.records)
        curated = measure_curate(source, Path(folder) / "out", url, args)
        prompts = [row["messages"] for row in asked(source)]
        per_request = measure_library(url, prompts, curated["requests"], args.concurrency)
    own = (curated["cpu"] - per_request * curated["requests"]) / args.records
    quarters = {f"MB after {done} records": f"{megabytes:.0f}" for done, megabytes in curated["memory"]}
    row = {
        "records": args.records,
        "concurrency": args.concurrency,
        "requests a record": f"{curated['requests'] / args.records:.1f}",
        "wall ms a record": f"{1e3 * curated['wall'] / args.records:.1f}",
        "CPU ms a record": f"{1e3 * curated['cpu'] / args.records:.1f}",
        "CPU ms a request of openai alone": f"{1e3 * per_request:.2f}",
        "our own CPU ms a record": f"{1e3 * own:.1f}",
        **quarters,
    }
    command = f"python -m benchmarks.curation --records {args.records} --concurrency {args.concurrency}"
    print(write_results("curation", "Curation without the model", command, torch.device("cpu"), [row]))


def write_source(file: Path, count: int) -> Path:
    """Chains that have parallel parts, again and again, each with a question of its own."""
    chains = [chain for chain in CHAINS if chain.is_parallel]
    rows = []
    for number in range(count):
        row = chains[number % len(chains)].row()
        rows.append(row | {"id": f"{row['id']}-{number}", "question": f"{row['question']} (No. {number})"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def measure_curate(source: Path, out: Path, url: str, args: argparse.Namespace) -> dict[str, Any]:
    """From the first finished record to the last: what starting and the page at the end take is not counted."""
    code = "import sys; from mvtrain.cli import main; sys.exit(main())"
    flags = ["--model", "m", "--base-url", url, "--concurrency", str(args.concurrency), "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, "curate", str(source), str(out), *flags], cwd=ROOT, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    watched, journal = psutil.Process(process.pid), out / "work" / "finished.jsonl"
    seen: list[tuple[int, float, float, float]] = []  # records, time, CPU seconds, bytes
    while process.poll() is None and (not seen or seen[-1][0] < args.records):
        done = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if done:
            cpu = watched.cpu_times()
            seen.append((done, time.perf_counter(), cpu.user + cpu.system, watched.memory_info().rss))
        time.sleep(0.1)
    told = json.loads(process.communicate()[0])
    if process.returncode or told["num_accepted"] != args.records:
        raise SystemExit(f"not all records were accepted: {told['rejections']}")
    first, last = seen[0], seen[-1]
    share = (last[0] - first[0]) / args.records
    quarters = [next(s for s in seen if s[0] >= args.records * k // 4) for k in range(1, 5)]
    return {
        "wall": (last[1] - first[1]) / share, "cpu": (last[2] - first[2]) / share,
        "requests": told["spending"]["total"]["requests"], "memory": [(s[0], s[3] / 1e6) for s in quarters],
    }  # fmt: skip


def asked(source: Path) -> list[dict[str, Any]]:
    """Requests as the first stage makes them, which are of middling size."""
    from mvtrain.curate.prompts import Prompts
    from mvtrain.curate.units import numbered, split_units

    prompts = Prompts.read()
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    filled = (
        prompts.fill("summary", question=r["question"], units=numbered(split_units(r["deepseek_thinking_trajectory"])))
        for r in rows
    )
    return [{"messages": [{"role": "user", "content": text}]} for text in filled]


def measure_library(url: str, prompts: list[Any], count: int, concurrency: int) -> float:
    """CPU seconds a request of the openai library by itself."""
    from openai import AsyncOpenAI

    async def run() -> float:
        turn = asyncio.Semaphore(concurrency)
        async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(messages: Any) -> None:
                async with turn:
                    await client.chat.completions.create(model="m", messages=messages, max_tokens=100)

            await ask(prompts[0])
            before = _cpu()
            await asyncio.gather(*(ask(prompts[k % len(prompts)]) for k in range(count)))
            return (_cpu() - before) / count

    return asyncio.run(run())


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
