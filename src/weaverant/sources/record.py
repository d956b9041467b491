"""What a file format is: records that are cheap to pass over, and the row in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec

from weaverant.protocols import Unreadable

Record = TypeVar("Record")
Row: TypeAlias = Mapping[str, Any] | Unreadable

SHOWN = 80
MOST_ROW = 1 << 28
"""Bytes of one row as text. No model takes more, and a journal's frame of that size can still be read."""


class Format(Protocol):
    """Reads one kind of file. Damage inside a file becomes `Unreadable` records, never an exception."""

    def records(self, path: str, start: int) -> tuple[Iterator[Any], int]:
        """The records of a file from index `start` on, in order, not decoded yet; and how many there are before,
        `start` unless the file has fewer."""
        ...

    def row(self, path: str, record: Any) -> Row:
        """A record decoded."""
        ...

    def count(self, path: str) -> int | None:
        """The number of records; None where only reading the file would tell."""
        ...


def pass_over(records: Iterator[Record], start: int) -> tuple[Iterator[Record], int]:
    """`Format.records` of what can only be read from its beginning."""
    return records, sum(1 for _ in islice(records, start))


def decode_object(text: bytes, where: str) -> Row:
    """The row in one JSON object."""
    try:
        return _decode(text)
    except msgspec.ValidationError as error:
        problem = f"cannot be kept: {error}" if text.lstrip()[:1] == b"{" else "not a JSON object"
    except msgspec.DecodeError as error:
        problem = f"not JSON: {error}"
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except RecursionError:
        problem = "nested too deeply"
    return Unreadable(f"{problem}; it reads {excerpt(text)}", where)


def excerpt(text: bytes) -> str:
    """The beginning of a record, quoted, for people."""
    shown = text[:SHOWN].decode(errors="replace").strip()
    return f"{shown!r}..." if len(text) > SHOWN else repr(shown)


_decode = msgspec.json.Decoder(dict[str, Any]).decode
