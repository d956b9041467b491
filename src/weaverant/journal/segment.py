"""The bytes of one segment file: header, frames, trailer (docs/data-format.md).

One frame is one batch of events, there as a whole or not at all. Its checksum starts from its offset, so a frame
found at another place than it was written to (a copy inside a payload, a misplaced block) is never taken for one.
"""

from __future__ import annotations

import errno
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
MINOR = 8
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
MOST_PAYLOAD = 1 << 30
"""Bytes of one frame, unpacked: a small file that claims to unpack to more is refused before memory is taken."""
MOST_LOOKED_AT = 8
"""Times a file's size: bytes of what begins like a frame and is none. Without a bound, a file full of such beginnings
would take time in the square of its size."""

_header = struct.Struct("<8sHHI")
_frame_head = struct.Struct("<4sIIB")
_trailer = struct.Struct("<4sIQQ")


class Frame(NamedTuple):
    """One whole frame: `kind` is EVENTS, SUMMARY or MAP (newer minors may know others), `end` where the next begins."""

    offset: int
    end: int
    kind: int
    payload: bytes


class _Packed(NamedTuple):
    """What may be a frame, as it is in the file."""

    check: int
    flags: int
    body: bytes

    def fits(self, offset: int) -> bool:
        """Whether it was written to that place, unharmed."""
        return _checksum(self.flags, self.body, offset) == self.check


class Trailer(NamedTuple):
    """The last bytes of a sealed segment: where its events end and where its summary begins."""

    events_end: int
    summary: int


def pack_header() -> bytes:
    return _header_of(MINOR)


def _header_of(minor: int) -> bytes:
    start = _header.pack(MAGIC, MAJOR, minor, 0)[:12]
    return start + crc32(start).to_bytes(4, "little")


def _may_be_torn(found: bytes, written: bytes) -> bool:
    """Whether a crash can have left this: zeros or an end where nothing was written yet, never other bytes."""
    return all(byte in (0, expected) for byte, expected in zip(found, written, strict=False))


def pack_frame(kind: int, payload: bytes | bytearray, offset: int, zstd: zstandard.ZstdCompressor) -> bytes:
    """The frame's bytes. It is valid only at `offset`."""
    if len(payload) > MOST_PAYLOAD:
        raise OSError(errno.EFBIG, f"an event of {len(payload):,} bytes, expected {MOST_PAYLOAD:,} at most")
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


def is_whole(data: bytes, offset: int) -> bool:
    """Whether these are whole frames, unharmed and written to that place of a segment, with the header before them
    where it is the beginning; a trailer may be the last of them."""
    at = HEADER_BYTES if offset == 0 else 0
    if at and crc32(data[:12]) != int.from_bytes(data[12:at], "little"):
        return False
    view = memoryview(data)
    while at < len(data):
        if data[at : at + len(SEAL)] == SEAL:
            return at + TRAILER_BYTES == len(data) and crc32(view[at + 8 :]) == int.from_bytes(
                data[at + 4 : at + 8], "little"
            )
        if len(data) - at < FRAME_HEAD_BYTES:
            return False
        marker, length, check, flags = _frame_head.unpack_from(data, at)
        start = at + FRAME_HEAD_BYTES
        body = view[start : start + length]
        if marker != MARKER or len(body) < length or _checksum(flags, body, offset + at) != check:
            return False
        at = start + length
    return at == len(data)


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
        self._looked_at = 0
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
        if self.next_frame(0, (HEADER_BYTES,)) is not None or self.trailer() is not None:
            raise self.corrupt(0, "its header does not match its checksum, but frames follow: was it copied as text?")
        if not any(_may_be_torn(head, _header_of(minor)) for minor in range(MINOR + 1)):
            raise self.corrupt(0, "it does not begin as a segment does; was it copied as text?")
        return False

    def trailer(self) -> Trailer | None:
        """Where the index of a sealed segment is; None for a segment that is not sealed."""
        end = self.size()
        tail = self._read(end - TRAILER_BYTES, TRAILER_BYTES) if end >= HEADER_BYTES + TRAILER_BYTES else b""
        if len(tail) < TRAILER_BYTES or tail[:4] != SEAL:
            return None
        _, check, events_end, summary = _trailer.unpack(tail)
        if crc32(tail[8:]) != check:
            return None
        if not HEADER_BYTES <= events_end <= summary < end:
            raise self.corrupt(end - TRAILER_BYTES, "the trailer names places outside of the file")
        return Trailer(events_end, summary)

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
        packed = self._packed_at(offset)
        if packed is None or not packed.fits(offset):
            return None
        _, flags, body = packed
        payload = self._unpacked(body, offset) if flags & COMPRESSED else body
        return Frame(offset, offset + FRAME_HEAD_BYTES + len(body), flags >> 1, payload)

    def next_frame(self, offset: int, moved: tuple[int, ...] = ()) -> int | None:
        """The offset of the first good frame at `offset` or anywhere after it; one that belongs to a place in `moved`
        counts as well: bytes were put in or lost before it."""
        size = self.size()
        most = self._looked_at + MOST_LOOKED_AT * size
        while offset < size:
            window = self._read(offset, 1 << 20)
            found = window.find(MARKER)
            while found >= 0:
                packed = self._packed_at(offset + found)
                if packed is not None and any(map(packed.fits, (offset + found, *moved))):
                    return offset + found
                if self._looked_at > most:
                    raise self.corrupt(offset + found, "more of it looks like frames than can be some")
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
        follower = self.next_frame(offset + 1, (offset, self._claimed_end(offset)))
        if follower is None and end is None:
            return None
        frame = self.frame_at(offset)  # a living writer may have finished the frame since we looked
        if frame is None:
            raise self.corrupt(offset, "a frame does not match its checksum, but the journal goes on after it")
        return frame

    def _claimed_end(self, offset: int) -> int:
        """Where the frame after the one at `offset` was written, as far as the harmed one still tells."""
        head = self._read(offset, FRAME_HEAD_BYTES)
        length = _frame_head.unpack(head)[1] if len(head) == FRAME_HEAD_BYTES else 0
        return offset + FRAME_HEAD_BYTES + length

    def _packed_at(self, offset: int) -> _Packed | None:
        """What may be a frame: it begins like one, and the file goes on as far as it should."""
        head = self._read(offset, FRAME_HEAD_BYTES)
        if len(head) < FRAME_HEAD_BYTES:
            return None
        marker, length, check, flags = _frame_head.unpack(head)
        start = offset + FRAME_HEAD_BYTES
        if marker != MARKER or start + length > self.size():
            return None
        body = self._read(start, length)
        self._looked_at += length
        return _Packed(check, flags, body) if len(body) == length else None

    def _unpacked(self, body: bytes, offset: int) -> bytes:
        try:
            size = zstandard.frame_content_size(body)
            if not 0 <= size <= MOST_PAYLOAD:
                raise self.corrupt(offset, f"a frame claims to unpack to {size:,} bytes, more than any that is written")
            return self._zstd.decompress(body)
        except zstandard.ZstdError as error:
            raise self.corrupt(offset, f"a frame cannot be decompressed ({error})") from error

    def _read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer at the end of the file."""
        try:
            data = os.pread(self._file, length, offset)
            while len(data) < length and (more := os.pread(self._file, length - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise JournalError(f"segment {str(self.path)!r} cannot be read at offset {offset}: {error}") from error
        return data


def _checksum(flags: int, body: bytes | bytearray | memoryview, offset: int) -> int:
    return crc32(body, crc32(bytes((flags,)), offset & 0xFFFFFFFF))
