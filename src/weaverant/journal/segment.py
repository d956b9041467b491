"""The bytes of one segment file: header, frames, trailer (docs/data-format.md).

One frame is one batch of events, there as a whole or not at all. Its checksum starts from its offset, so a frame
found at another place than it was written to (a copy inside a payload, a misplaced block) is never taken for one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import zstandard

from weaverant.errors import JournalCorrupt, JournalError, UserError
from weaverant.events import FORMAT_VERSION

MAJOR = FORMAT_VERSION
MINOR = 2
SUFFIX = ".wvj"

MAGIC = b"\x89WVJ\r\n\x1a\n"
MARKER = b"\xf5wvj"
"""0xF5 never occurs in UTF-8, so text seldom looks like a frame."""
SEAL = b"\xf5end"

HEADER_BYTES = 16
FRAME_HEAD_BYTES = 13
TRAILER_BYTES = 24

EVENTS, SUMMARY, MAP = 0, 1, 2
COMPRESSED = 0x01
COMPRESS_FROM = 256
"""Bytes; below, zstd level 1 saves less than its frame costs."""

_header = struct.Struct("<8sHHI")
_frame_head = struct.Struct("<4sIIB")
_trailer = struct.Struct("<4sIQQ")


class Frame(NamedTuple):
    """One whole frame: `kind` is EVENTS, SUMMARY or MAP (newer minors may know others), `end` where the next begins."""

    offset: int
    end: int
    kind: int
    payload: bytes


class Trailer(NamedTuple):
    """The last bytes of a sealed segment: where its events end and where its summary begins."""

    events_end: int
    summary: int


def pack_header() -> bytes:
    start = _header.pack(MAGIC, MAJOR, MINOR, 0)[:12]
    return start + crc32(start).to_bytes(4, "little")


def pack_frame(kind: int, payload: bytes | bytearray, offset: int, zstd: zstandard.ZstdCompressor) -> bytes:
    """The frame's bytes. It is valid only at `offset`."""
    flags = kind << 1
    body: bytes | bytearray = payload
    if len(payload) >= COMPRESS_FROM:
        packed = zstd.compress(payload)
        if len(packed) < len(payload):
            flags, body = flags | COMPRESSED, packed
    check = _checksum(flags, body, offset)
    return b"".join((_frame_head.pack(MARKER, len(body), check, flags), body))


def pack_trailer(events_end: int, summary: int) -> bytes:
    tail = _trailer.pack(SEAL, 0, events_end, summary)[8:]
    return SEAL + crc32(tail).to_bytes(4, "little") + tail


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:06}{SUFFIX}"


def segment_numbers(directory: Path) -> list[int]:
    """The numbers of the segments there, ascending; `JournalCorrupt` where one is missing."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(f"the journal {str(directory)!r} cannot be read: {error}") from error
    stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
    numbers = sorted(int(stem) for stem in stems if stem.isdecimal())
    if numbers != list(range(1, len(numbers) + 1)):
        missing = min(set(range(1, len(numbers) + 1)) - set(numbers))
        raise JournalCorrupt(
            f"segment {missing:06} of the journal {str(directory)!r} is missing: its segments should be numbered "
            f"from 1 to {numbers[-1]} without a gap. Put the file back from a copy of the run"
        )
    return numbers


class Segment:
    """A segment file open for reading. Never changes it; the file may grow meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.minor = MINOR
        self._zstd = zstandard.ZstdDecompressor()
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise JournalError(f"segment {str(path)!r} cannot be opened: {error}") from error

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def begun(self) -> bool:
        """Whether the file's header was written; without it, it holds nothing. Refuses formats it cannot read."""
        head = self._read(0, HEADER_BYTES)
        if len(head) == HEADER_BYTES and crc32(head[:12]) == int.from_bytes(head[12:], "little"):
            magic, major, self.minor, _ = _header.unpack(head)
            if magic == MAGIC and major > MAJOR:
                raise UserError(
                    f"segment {str(self.path)!r} has format {major}.{self.minor}; this weaverant reads up to "
                    f"{MAJOR}.x. Upgrade it: pip install --upgrade weaverant"
                )
            if magic == MAGIC and major == MAJOR:
                return True
        if self.next_frame(HEADER_BYTES) is not None:
            raise self.corrupt(0, "the file header does not match its checksum, but frames follow")
        return False

    def trailer(self) -> Trailer | None:
        """Where the index of a sealed segment is; None for a segment that is not sealed."""
        end = self.size()
        tail = self._read(end - TRAILER_BYTES, TRAILER_BYTES) if end >= HEADER_BYTES + TRAILER_BYTES else b""
        if len(tail) < TRAILER_BYTES or tail[:4] != SEAL:
            return None
        _, check, events_end, summary = _trailer.unpack(tail)
        return Trailer(events_end, summary) if crc32(tail[8:]) == check else None

    def frame(self, offset: int) -> Frame:
        """The frame at a place where there must be one."""
        frame = self.frame_at(offset)
        if frame is None:
            raise self.corrupt(offset, "a frame does not match its checksum")
        return frame

    def frames(self, offset: int = HEADER_BYTES, end: int | None = None) -> Iterator[Frame]:
        """The frames from `offset` on, up to `end` exactly, or without it up to a torn tail.

        A bad frame with any good frame after it is `JournalCorrupt`.
        """
        while end is None or offset < end:
            frame = self.frame_at(offset)
            if frame is None:
                frame = self._missing(offset, end)
                if frame is None:
                    return
            yield frame
            offset = frame.end
        if offset > end:
            raise self.corrupt(end, "a frame reaches into the index")

    def frame_at(self, offset: int) -> Frame | None:
        """The whole, unharmed frame that begins at `offset`, if there is one."""
        head = self._read(offset, FRAME_HEAD_BYTES)
        if len(head) < FRAME_HEAD_BYTES:
            return None
        marker, length, check, flags = _frame_head.unpack(head)
        start = offset + FRAME_HEAD_BYTES
        if marker != MARKER or start + length > self.size():
            return None
        body = self._read(start, length)
        if len(body) < length or _checksum(flags, body, offset) != check:
            return None
        try:
            payload = self._zstd.decompress(body) if flags & COMPRESSED else body
        except zstandard.ZstdError as error:
            raise self.corrupt(offset, f"a frame cannot be decompressed ({error})") from error
        return Frame(offset, start + length, flags >> 1, payload)

    def next_frame(self, offset: int) -> int | None:
        """The offset of the first good frame at `offset` or anywhere after it."""
        size = self.size()
        while offset < size:
            window = self._read(offset, 1 << 20)
            found = window.find(MARKER)
            while found >= 0:
                if self.frame_at(offset + found) is not None:
                    return offset + found
                found = window.find(MARKER, found + 1)
            if len(window) < len(MARKER):
                break
            offset += len(window) - len(MARKER) + 1
        return None

    def corrupt(self, offset: int, what: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"segment {str(self.path)!r} is damaged at offset {offset}: {what}. Nothing was changed. "
            "Put the file back from a copy of the run"
        )

    def _missing(self, offset: int, end: int | None) -> Frame | None:
        """What to make of a place without a good frame: a torn tail is None, all else is corrupt."""
        follower = self.next_frame(offset + 1)
        if follower is None and end is None:
            return None
        frame = self.frame_at(offset)  # a living writer may have finished the frame since we looked
        if frame is None:
            raise self.corrupt(offset, "a frame does not match its checksum, but the journal goes on after it")
        return frame

    def _read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file."""
        try:
            data = os.pread(self._file, length, offset)
            while len(data) < length and (more := os.pread(self._file, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise JournalError(f"segment {str(self.path)!r} cannot be read at offset {offset}: {error}") from error
        return data


def _checksum(flags: int, body: bytes | bytearray, offset: int) -> int:
    return crc32(body, crc32(bytes((flags,)), offset & 0xFFFFFFFF))
