"""Comma- or tab-separated text with a header line. Every value is a string; an empty cell is an empty string."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import NamedTuple

from weaverant.protocols import Unreadable
from weaverant.sources.record import MOST_ROW, Row, pass_over


class Cells(NamedTuple):
    """One line of a table and the line of the file it ends on; `problem` if it could not be split into cells."""

    header: list[str]
    cells: list[str]
    line: int
    problem: str = ""


class SeparatedValues:
    """`.csv` with `delimiter=","`, `.tsv` with a tab. Quoted cells may hold line breaks."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter

    def records(self, path: str, start: int) -> tuple[Iterator[Cells], int]:
        return pass_over(self._records(path), start)

    def _records(self, path: str) -> Iterator[Cells]:
        # The module's limit of 128 kB a cell is process-wide and too small for documents.
        csv.field_size_limit(max(csv.field_size_limit(), MOST_ROW))
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=self._delimiter, strict=True)
            header: list[str] | None = None
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Cells([], [], reader.line_num, str(error))
                    continue
                if not cells:
                    continue
                if header is None:
                    header = cells
                else:
                    yield Cells(header, cells, reader.line_num)

    def row(self, path: str, record: Cells) -> Row:
        header, cells, line, problem = record
        if not problem and len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
        if not problem and len(set(header)) < len(header):
            problem = _overwritten(header, cells)
        if not problem and not "".join((*header, *cells)).isascii() and _garbled((*header, *cells)):
            problem = "not UTF-8"
        if problem:
            begins = self._delimiter.join(cells)[:80].encode(errors="surrogateescape").decode(errors="replace")
            return Unreadable(f"{problem}; it reads {begins!r}", f"{path}:{line}")
        return dict(zip(header, cells, strict=True))

    def count(self, path: str) -> None:
        return None


def _overwritten(header: list[str], cells: list[str]) -> str:
    """Which of several columns of one name differ, so that a row could keep only one of them; empty if none does."""
    kept: dict[str, str] = {}
    for name, cell in zip(header, cells, strict=True):
        if kept.setdefault(name, cell) != cell:
            return f"the header has the column {name!r} more than once, here with {kept[name]!r:.40} and {cell!r:.40}"
    return ""


def _garbled(cells: tuple[str, ...]) -> bool:
    """Whether a byte that was not UTF-8 stands in the text, as the surrogate that `surrogateescape` left."""
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return True
    return False
