"""Frames: what one side says in one turn of its loop, as one write.

A frame is its length (4 bytes, little-endian) and a MessagePack array of what is said. Nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

MOST_FRAME = 1 << 26
"""Bytes of one frame."""
FLUSH_AT = 1 << 16
"""Bytes from which a frame is sent before its turn of the loop ends."""
MOST_SAID = MOST_FRAME - 2 * FLUSH_AT
"""Bytes of one thing that is said: with what may stand before it, its frame is never too long."""

_head = struct.Struct("<I")
_heads = struct.Struct(">BI")
HEAD_BYTES = _head.size + _heads.size


class Hello(Struct, array_like=True, tag=0, frozen=True):
    """The first thing that each side says. `window`: how many asks of the other side it will have open."""

    name: str
    window: int


class Asked(Struct, array_like=True, tag=1, frozen=True, gc=False):
    number: int
    kind: str
    body: Any
    owner: str


class Answered(Struct, array_like=True, tag=2, frozen=True, gc=False):
    number: int
    body: Any


class Denied(Struct, array_like=True, tag=3, frozen=True, gc=False):
    number: int
    text: str


class Told(Struct, array_like=True, tag=4, frozen=True, gc=False):
    kind: str
    body: Any


class Cancelled(Struct, array_like=True, tag=5, frozen=True, gc=False):
    """Nobody waits for that answer any more."""

    number: int


class Dropped(Struct, array_like=True, tag=6, frozen=True, gc=False):
    """The work on what was cancelled is over."""

    number: int


class Released(Struct, array_like=True, tag=7, frozen=True, gc=False):
    """The owner needs nothing shared any more."""

    owner: str


class Freed(Struct, array_like=True, tag=8, frozen=True, gc=False):
    """Numbers of shared things to forget: they are taken from the extension while the frame is decoded."""

    numbers: Any


Said: TypeAlias = Hello | Asked | Answered | Denied | Told | Cancelled | Dropped | Released | Freed

UNDECODABLE = (msgspec.DecodeError, ValueError, TypeError, LookupError, OverflowError, RecursionError)
"""What decoding hostile bytes raises."""

UNENCODABLE = (msgspec.EncodeError, ValueError, TypeError, OverflowError, RecursionError)
"""What encoding raises where something is no plain data."""


class TooLong(ValueError):
    """One thing that is longer than a frame may be."""


class Frame:
    """What is said and not yet written."""

    __slots__ = ("_buffer", "count")

    def __init__(self) -> None:
        self.count = 0
        self._buffer = bytearray(HEAD_BYTES)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._buffer)

    def add(self, said: Said) -> int:
        """The frame's size. It stays as it was where that cannot be encoded (`UNENCODABLE`)."""
        buffer = self._buffer
        before = len(buffer)
        try:
            _encode_into(said, buffer, before)
            if len(buffer) - before > MOST_SAID:
                raise TooLong(f"{len(buffer) - before:,} bytes cannot be said at once; the most is {MOST_SAID:,}")
        except UNENCODABLE:
            del buffer[before:]
            raise
        self.count += 1
        return len(buffer)

    def take(self) -> bytearray:
        """All of it as bytes; the frame is empty then."""
        buffer, count = self._buffer, self.count
        self._buffer, self.count = bytearray(HEAD_BYTES), 0
        _head.pack_into(buffer, 0, len(buffer) - _head.size)
        _heads.pack_into(buffer, _head.size, 0xDD, count)
        return buffer


class Split:
    """Bytes as they come, cut into frames. `hook` gives what a MessagePack extension stands for."""

    def __init__(self, hook: Callable[[int, memoryview], Any]) -> None:
        self._rest = bytearray()
        self._decode: Callable[[Any], list[Said]] = msgspec.msgpack.Decoder(list[Said], ext_hook=hook).decode

    def feed(self, data: bytes | memoryview) -> list[list[Said]]:
        """The frames that are complete now. `UNDECODABLE` for what no peer says; the link is of no more use then."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < _head.size or len(rest) - _head.size < _size(rest, 0):
                return []
            data = bytes(rest)
        view, frames, at, end = memoryview(data), list[list["Said"]](), 0, len(data)
        while end - at >= _head.size:
            until = at + _head.size + _size(data, at)
            if until > end:
                break
            frames.append(self._decode(view[at + _head.size : until]))
            at = until
        self._rest = bytearray(view[at:])
        return frames


def _size(data: bytes | bytearray | memoryview, at: int) -> int:
    size = _head.unpack_from(data, at)[0]
    if size > MOST_FRAME:
        raise ValueError(f"a frame of {size:,} bytes; the most is {MOST_FRAME:,}")
    return size


_encode_into = msgspec.msgpack.Encoder().encode_into
