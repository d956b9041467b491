"""Text of rows, models and servers on its way to a terminal: what would steer the terminal is shown instead.

A reply may hold escape codes that rewrite the screen, change the window's title or the clipboard.
"""

from __future__ import annotations

import re

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
r"""Control characters but tab and line feed; what turns the direction of writing around; halves of pairs, which cannot
be written at all."""


def visible(text: str) -> str:
    r"""The text with `\u001b` for an escape character, and so on. JSON stays JSON, and means the same."""
    return _STEERS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
