"""Where rows come from. `open_source` makes a source from the text of an `--input` option."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from weaverant.errors import UserError
from weaverant.protocols import Source
from weaverant.sources.files import SUFFIXES, Files
from weaverant.sources.memory import MemoryRows
from weaverant.sources.stdin import StandardInput

__all__ = ["Files", "MemoryRows", "StandardInput", "open_source"]

POOLS = ("weave", "train", "heldout")


def open_source(spec: str) -> Source:
    """`-` for standard input (one JSON object a line), `arithmetic:POOL`, or a file, a folder or a glob of files."""
    if spec == "-":
        return StandardInput()
    if spec.startswith("arithmetic:"):
        pool = spec.removeprefix("arithmetic:")
        if pool not in POOLS:
            raise UserError(f"no arithmetic pool {pool!r}; expected one of {', '.join(POOLS)}, as in arithmetic:weave")
        return cast(Source, import_module("weaverant.sources.arithmetic").Arithmetic(pool))
    if not spec.strip():
        raise UserError(f"the input is empty; expected a file ending in {', '.join(SUFFIXES)}, a folder, a glob, or -")
    return Files(spec)
