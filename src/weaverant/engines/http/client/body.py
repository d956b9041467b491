"""The body of an answer: decompressed as it comes, bounded, and handed on or kept."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

_GZIP, _ZLIB, _RAW = 31, 15, -15
_MAGIC = b"\x1f\x8b"


class Garbled(Exception):
    """The bytes of an answer cannot be what they are said to be."""


class Body(Struct, eq=False):
    """Takes pieces until `too_large`. No more than `most` bytes and one are ever made of what a server sends, so
    that a small answer which unpacks to gigabytes does no harm."""

    inflate: Inflate | None
    most: int
    on_data: Callable[[bytes], None] | None
    pieces: list[bytes] = []
    size: int = 0
    too_large: bool = False

    def feed(self, piece: bytes) -> None:
        if self.inflate is not None:
            piece = self.inflate.feed(piece, self.most + 1 - self.size)
        self.size += len(piece)
        if self.size > self.most:
            self.too_large = True
            self.pieces.clear()
        elif self.on_data is None:
            self.pieces.append(piece)
        elif piece:
            self.on_data(piece)

    def end(self) -> bytes:
        """The whole body, or what was not handed on of it."""
        if self.inflate is not None and not self.too_large:
            self.inflate.end()
        pieces = self.pieces
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def read_headers(head: list[bytes]) -> dict[str, str]:
    """Of names and values in turn: names in lower case, of a repeated one the last. Decoded all at once: some servers
    send thirty."""
    texts = b"\0".join(head).decode("latin-1").split("\0")
    if len(texts) > len(head) > 0:
        raise Garbled("a header of it holds a null")
    turns = iter(texts)
    return dict(zip(map(str.lower, turns), turns, strict=False))


def body_of(status: int, headers: Mapping[str, str], most: int, on_data: Callable[[bytes], None] | None) -> Body:
    """What to read an answer's body with. `Garbled` where its head makes no sense of it."""
    if status == 101:
        raise Garbled("it changes to another protocol, which nobody asked for")
    coding = headers.get("transfer-encoding")
    if coding and (coding := coding.lower()) not in ("chunked", "identity"):
        raise Garbled(f"it is transferred as {coding!r}, expected 'chunked'")
    encoding = headers.get("content-encoding")
    return Body(_inflate(encoding) if encoding else None, most, on_data if status == 200 else None)


class Inflate:
    """gzip (of any number of members) and deflate (with zlib's header, as the RFC has it, or bare, as some send)."""

    __slots__ = ("_begun", "_bits", "_stream")

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._stream: Any = None
        self._begun = False

    def feed(self, data: bytes, most: int) -> bytes:
        """At most `most` bytes; what is left over of `data` then is dropped."""
        made: list[bytes] = []
        while data and most > 0:
            if self._stream is None:
                self._stream = self._next(data)
                if self._stream is None:
                    break
            try:
                piece = self._stream.decompress(data, most)
            except zlib.error:
                raise Garbled("its compressed body is damaged") from None
            made.append(piece)
            most -= len(piece)
            data = self._stream.unconsumed_tail
            if self._stream.eof:
                data, self._stream = self._stream.unused_data, None
        return b"".join(made)

    def end(self) -> None:
        if self._stream is not None:
            raise Garbled("its compressed body is cut off")

    def _next(self, data: bytes) -> Any:
        """None where what follows a whole stream is padding."""
        if self._begun and (self._bits != _GZIP or data[:1] != _MAGIC[:1]):
            return None
        self._begun = True
        bare = self._bits == _ZLIB and data[0] & 0x0F != 8
        return zlib.decompressobj(_RAW if bare else self._bits)


def _inflate(encoding: str) -> Inflate | None:
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name in ("gzip", "x-gzip"):
        return Inflate(_GZIP)
    if name == "deflate":
        return Inflate(_ZLIB)
    raise Garbled(f"its body is compressed as {encoding!r}, expected gzip or deflate, which were asked for")
