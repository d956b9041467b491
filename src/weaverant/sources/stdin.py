"""Standard input: one JSON object a line. It cannot be read again, so a run keeps its rows in the journal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, cast

from weaverant.errors import UserError
from weaverant.sources.jsonl import line_row, lines
from weaverant.sources.once import Once
from weaverant.sources.record import Row


class StandardInput:
    """Rows as they arrive; the next row blocks until there is a line. `stream` yields lines as bytes."""

    name = "-"
    rereadable = False

    def __init__(self, stream: Iterable[bytes] | None = None) -> None:
        self._lines = Once(lines(_standard_input() if stream is None else stream, "<stdin>"), "standard input")

    def identity(self) -> None:
        return None

    def count(self) -> None:
        return None

    def rows(self, start: int) -> Iterator[Row]:
        for _, line in self._lines.items(start):
            yield line_row(line, "<stdin>")


def _standard_input() -> Iterable[bytes]:
    stream = cast("TextIO | None", sys.stdin)
    if stream is None:
        raise UserError("standard input is closed; expected JSON lines on it, as in --input - < rows.jsonl")
    return stream.buffer
