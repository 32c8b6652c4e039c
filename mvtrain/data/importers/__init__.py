"""Public formats of parallel reasoning -> rows of ours. One module per format.

docs/prepare.md says what is relied on.
"""

from __future__ import annotations

import importlib
from typing import Any

FORMATS = ("threadweaver", "parallel-r1", "npr", "medverse")


def load_format(name: str) -> Any:
    """The `Format` of this name. Raises ValueError that lists the names there are."""
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").FORMAT
