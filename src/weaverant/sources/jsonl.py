"""One JSON object a line, plain or gzipped. Blank lines count as lines, not as rows."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from weaverant.protocols import Unreadable
from weaverant.sources.record import MOST_ROW, Row, decode_object

Line: TypeAlias = tuple[int, bytes] | Unreadable
"""A line that is not blank, with its number from 1; or why there are no more."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines:
    """`.jsonl` and `.jsonl.gz`. Passing over a line costs no decoding."""

    def records(self, path: str) -> Iterator[Line]:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            yield from lines(file, path)

    def row(self, path: str, record: Line) -> Row:
        return line_row(record, path)

    def count(self, path: str) -> int | None:
        """Lines that are not blank; reads the whole file. A packed file is not unpacked to be counted."""
        if path.endswith(".gz"):
            return None
        try:
            with open(path, "rb") as file:
                return sum(1 for _ in lines(file, path))
        except OSError:
            return None


def lines(file: Iterable[bytes], name: str) -> Iterator[Line]:
    """The lines of a binary stream that are not blank. A stream that breaks off ends with an `Unreadable`."""
    number = 0
    try:
        for number, line in enumerate(_whole(file), 1):
            if len(line) > MOST_ROW:
                yield Unreadable(f"a line of more than {MOST_ROW:,} bytes", f"{name}:{number}")
                continue
            if number == 1:
                line = line.removeprefix(BYTE_ORDER_MARK)
            if not line.isspace() and line:
                yield number, line
    except (EOFError, OSError, zlib.error) as error:
        yield Unreadable(f"the file breaks off here: {error}", f"{name}:{number + 1}")


def _whole(file: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, and of one that is too long the beginning: a small packed file may unpack to one line of any length."""
    readline = getattr(file, "readline", None)
    if readline is None:
        yield from file
        return
    while line := readline(MOST_ROW + 1):
        yield line
        while len(line) > MOST_ROW and not line.endswith(b"\n"):
            line = readline(MOST_ROW + 1)


def line_row(record: Line, name: str) -> Row:
    if isinstance(record, Unreadable):
        return record
    number, text = record
    return decode_object(text, f"{name}:{number}")
