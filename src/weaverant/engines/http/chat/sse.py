"""Server-sent events: the lines of an event stream, cut anywhere, as whole events.

As the HTML standard (section 9.2.6) has it, but that an event which the stream ends in is given, too: servers forget
the empty line after the last one.
"""

from __future__ import annotations

from typing import NamedTuple

BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """`kind` is empty for a plain event; `data` are its lines of data, joined by line feeds."""

    kind: bytes
    data: bytes


class Events:
    """Linear in what it is fed, however small the pieces."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The pieces of a line that has not ended."""
        self._after_return = False
        """The last piece ended in a carriage return; a line feed that comes next belongs to it."""
        self._first = True
        self._kind = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[Event]:
        """The events that end in this piece of the stream."""
        if self._after_return and piece:
            self._after_return = False
            piece = piece[1:] if piece[:1] == b"\n" else piece
        if b"\n" not in piece and b"\r" not in piece:
            self._line.append(piece)
            return []
        lines = b"".join((*self._line, piece)).splitlines(keepends=True)
        self._after_return = piece.endswith(b"\r")
        self._line = [] if piece.endswith((b"\r", b"\n")) else [lines.pop()]
        return [event for line in lines if (event := self._take(line.rstrip(b"\r\n")))]

    def end(self) -> list[Event]:
        """The event that the stream ended in, if any."""
        lines = (b"".join(self._line), b"")
        self._line = []
        return [event for line in lines if (event := self._take(line))]

    def _take(self, line: bytes) -> Event | None:
        if self._first:
            self._first = False
            line = line.removeprefix(BOM)
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._kind = value
        return None

    def _dispatch(self) -> Event | None:
        kind, data = self._kind, self._data
        self._kind, self._data = b"", []
        return Event(kind, b"\n".join(data)) if data else None
