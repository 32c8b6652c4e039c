"""Seconds and bytes, measured alike on CPU and CUDA, and tables of them."""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

RESULTS = Path(__file__).parent / "results"


def seconds(action: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long an action takes, until the device has finished it; and what it returned."""
    synchronize(device)
    began = time.perf_counter()
    result = action()
    synchronize(device)
    return time.perf_counter() - began, result


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_mib(action: Callable[[], Any], device: torch.device) -> float:
    """Most memory of tensors that an action holds above what was held before, in MiB, as PyTorch's allocators count."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    held = accumulate(event.nbytes() for event in events)
    return max(held, default=0) / 2**20


def machine(device: torch.device) -> dict[str, str]:
    """What the numbers were measured on."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return {"device": name, "torch": torch.__version__, "python": platform.python_version(), "date": str(date.today())}


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def write_results(name: str, title: str, command: str, device: torch.device, rows: list[dict[str, Any]]) -> Path:
    """Write `results/NAME-DEVICE.json` and `.md`, and print the table. Returns the path of the latter."""
    about = machine(device)
    RESULTS.mkdir(exist_ok=True)
    stem = RESULTS / f"{name}-{device.type}"
    record = {"command": command, "machine": about, "rows": rows}
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [f"# {title}", "", f"`{command}`", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    text = "\n".join([*lines, *_table(rows)]) + "\n"
    stem.with_suffix(".md").write_text(text)
    print(text)
    return stem.with_suffix(".md")


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
