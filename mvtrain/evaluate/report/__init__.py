"""The report of an evaluation: `report.html`, which needs no network, and its summary `report.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvtrain.evaluate.records import Sample

MAX_BYTES = 30_000_000


def write_report(
    folder: str | Path,
    header: Mapping[str, Any],
    results: Mapping[str, Any],
    samples: Sequence[Sample],
    max_bytes: int = MAX_BYTES,
) -> tuple[Path, Path]:
    """Write both files, each whole or not at all.

    Args:
        header: what was run, see `header.run_header`.
        results: see `results.make_results`.
        max_bytes: of report.html. Where not everything fits, it says what was left out.

    Raises ImportError that names the extra where jinja2 or matplotlib is missing.
    """
    from mvtrain.evaluate.report.html import render_html
    from mvtrain.evaluate.report.markdown import render_markdown
    from mvtrain.folders import write_whole

    html, markdown = Path(folder) / "report.html", Path(folder) / "report.md"
    write_whole(html, render_html(header, results, samples, max_bytes))
    write_whole(markdown, render_markdown(header, results, samples))
    return html, markdown
