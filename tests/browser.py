"""A headless Chromium for tests of pages: every message of the console, every request and every dialog is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_MS = 10_000


@dataclass
class Visit:
    """A page that was opened from disk, and what happened on it."""

    page: Any
    url: str
    complaints: list[str] = field(default_factory=list)
    """Errors of the console, uncaught exceptions and dialogs."""
    requests: list[str] = field(default_factory=list)

    def check_quiet(self) -> None:
        """Nothing went wrong, and nothing but the page itself was asked for."""
        assert self.complaints == []
        others = [request for request in self.requests if request != self.url and not request.startswith("data:")]
        assert others == [], "the page must not need anything but itself"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is skipped, with the reason, where there is none."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(NAMES)} is installed; set CHROMIUM to its path")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'mvtrain[dev]'")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def visit(browser: Any, path: Path, fragment: str = "", **context: Any) -> Visit:
    """Open a file, in a profile of its own. `context` is as for playwright's `new_context`, such as `color_scheme`."""
    options = {"viewport": {"width": 1280, "height": 900}, **context}
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(TIMEOUT_MS)
    url = path.resolve().as_uri()
    found = Visit(page, url)
    page.on("request", lambda request: found.requests.append(request.url.split("#")[0]))
    page.on("pageerror", lambda error: found.complaints.append(f"exception: {error}"))
    page.on("console", lambda said: said.type in ("error", "warning") and found.complaints.append(said.text))
    page.on("dialog", lambda dialog: (found.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.goto(f"{url}#{fragment.lstrip('#')}" if fragment else url)
    return found
