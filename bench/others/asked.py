"""What every driver of a peer is asked, and tells. It runs in the peer's environment: standard library only."""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

STAGES = (
    ("draft", "write {{ text }}"),
    ("critique", "criticise {{ text }}\n{{ draft }}"),
    ("final", "revise {{ text }}\n{{ draft }}\n{{ critique }}"),
)
"""Column and prompt of three calls, each of which needs the ones before it; the first alone is one chat call a row."""


class Asked(NamedTuple):
    url: str
    """The server's base URL, with /v1."""
    rows: int
    at_once: int
    """Calls in flight, or the size of a batch where that is what a peer has."""
    stages: tuple[tuple[str, str], ...]
    folder: Path
    """Where files may be left."""


def asked() -> Asked:
    """From the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--at-once", type=int, required=True)
    parser.add_argument("--stages", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True)
    found = parser.parse_args()
    return Asked(found.url, found.rows, found.at_once, STAGES[: found.stages], found.folder)


def texts(rows: int) -> list[dict[str, Any]]:
    """The input."""
    return [
        {"text": f"row {n}: {n} apples, every third one given away; how many are left, and why?"} for n in range(rows)
    ]


def tell(package: str, rows: int) -> None:
    """The last line of a driver: what ran, and how many rows came out whole."""
    print("\n" + json.dumps({"package": package, "version": version(package), "rows": rows}), flush=True)
