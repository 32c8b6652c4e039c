"""Parts of the pages that mvtrain writes: self-contained files that contact no network and run no text of a model."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

_CLOSING = re.compile(r"</(script|style)|<!--", re.IGNORECASE)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


_PARTS = {"viewer.js": ("viewer_model.js", "viewer_lanes.js", "viewer_text.js", "viewer.js")}
"""Scripts that are kept in several files, in the order in which they run."""


def page_text(name: str) -> str:
    """The contents of a page file, such as `viewer.css`; `viewer.js` comes with the parts that it is made of."""
    folder = resources.files(__name__)
    return "".join(folder.joinpath(part).read_text(encoding="utf-8") for part in _PARTS.get(name, (name,)))


def embed_json(value: Any) -> str:
    r"""JSON that is safe inside `<script type="application/json">`: `<`, `>`, `&`, U+2028 and U+2029 are `\u` escapes.

    Raises ValueError for NaN and infinities, which no browser reads.
    """
    return _json(value).translate(_ESCAPES)


def pack(value: Any) -> str:
    """Base64 of gzipped JSON, for `mvViewer.unpack`. The same value always gives the same text."""
    return base64.b64encode(gzip.compress(_json(value).encode(), mtime=0)).decode()


def content_security_policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """The policy for a page's meta tag: these inline scripts and styles (their exact text), `data:` images, no more.

    A page with it loads nothing, connects to nothing, and runs no script that text smuggles in.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hashes(scripts)}",
            f"style-src {_hashes(styles)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def render_page(template: str, scripts: Sequence[str] = (), styles: Sequence[str] = (), **values: Any) -> str:
    """A page from the text of a jinja2 template. Every value is escaped but the given scripts and styles.

    The template gets `csp` for its meta tag, and `scripts` and `styles`, to be put between tags without white space
    around them: `<script>{{ scripts[0] }}</script>`. For JSON pass `Markup(embed_json(value))` (of markupsafe).
    Raises ImportError that names the extra where jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise ImportError("pages are made with jinja2: pip install 'mvtrain[eval]'") from None
    for text in (*scripts, *styles):
        assert not _CLOSING.search(text), "a script or style that closes its own element"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    parts = {"scripts": [Markup(text) for text in scripts], "styles": [Markup(text) for text in styles]}
    return environment.from_string(template).render(csp=content_security_policy(scripts, styles), **parts, **values)


def _json(value: Any) -> str:
    """Compact JSON. A lone surrogate, which JSON lines can hold, cannot be written as UTF-8: it stays an escape."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ValueError(f"cannot be shown on a page: {error}") from None
    return _LONE_SURROGATE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _hashes(texts: Sequence[str]) -> str:
    """As browsers hash an inline element: its exact text."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
