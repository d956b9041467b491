"""The order of samples: that of the rows, whatever order their tasks ended in."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[./]")


def row_order(key: str) -> tuple[int, tuple[int, ...], str]:
    """Sorts task keys: rows of the source by index and trial, each followed by what was made of it; groups last, by
    stage and hash, which depend on their members alone."""
    group, at, rest = key.rpartition("@")
    if at:
        name, *numbers = rest.split("/")
        return int(group), tuple(map(int, numbers)), name
    return 0, tuple(map(int, _NUMBER.split(key))), ""
