"""Models' text in a terminal: shown as it is, taken for neither markup nor commands."""

from __future__ import annotations

from rich.text import Text

_SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
"""Control characters -> their pictures. Terminals also obey those of C1."""
_SHOWN |= {code: "\ufffd" for code in range(0x80, 0xA0)}


def plain(text: str, style: str = "") -> Text:
    """Text that rich prints as it is: no markup, no control characters."""
    return Text(text.translate(_SHOWN), style=style)
