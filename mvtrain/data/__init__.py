"""Data: sources -> records -> examples -> phases -> packs -> batches.

Names are imported on first use, so a plan needs no torch and a plain import nothing heavy. `collate` stands in the
module of its own name: `from mvtrain.data.collate import collate`.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "curriculum": ("EIGHT_PHASES", "as_indices", "epochs", "phases"),
    "examples": ("Example", "Report", "build_examples"),
    "packing": ("Step", "balance", "pack", "plan_steps", "rank_packs"),
    "sources": ("Record", "RowError", "read_records"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
