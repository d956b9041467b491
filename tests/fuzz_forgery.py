"""Journals with right checksums that somebody made to do harm: reading, showing and exporting them ends in documented
errors, in bounded time and memory."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import zstandard

from fuzz_data import ODD_NUMBERS, spoilt, text, value
from fuzz_journal import attempt, compare, frames
from fuzz_runs import groups, make_run
from weaverant.cli import main
from weaverant.journal import BlobStore, JournalReader
from weaverant.journal.segment import (
    COMPRESSED,
    EVENTS,
    FRAME_HEAD_BYTES,
    HEADER_BYTES,
    MAP,
    MARKER,
    SUMMARY,
    pack_frame,
    pack_header,
    pack_trailer,
    segment_path,
)
from weaverant.message import digest

ZSTD = zstandard.ZstdCompressor(level=1)
COMMANDS = (
    ["show", "RUN"],
    ["show", "RUN", "--json"],
    ["show", "RUN", "--task", "0.1.0/0"],
    ["show", "RUN", "--task", "0.1.0/0", "--json"],
    ["export", "RUN", "--as", "raw", "--out", "-"],
    ["export", "RUN", "--as", "messages", "--out", "-"],
    ["export", "RUN", "--as", "preference", "--out", "-"],
)


@cache
def original(folder: Path) -> Path:
    make_run(folder / "original")
    codes = [ask(command, folder / "original") for command in COMMANDS]
    assert 1 not in codes, codes  # what is forged would be hidden behind what is wrong with it
    return folder / "original"


def forgery(odds: Random, folder: Path) -> None:
    """The whole run, with a frame or an index of its second segment replaced."""
    copy = folder / "forged"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original(folder), copy)
    path = segment_path(copy / "journal", 2)
    path.write_bytes(forged(path.read_bytes(), odds))
    if odds.random() < 0.1:
        forge_blob(copy, odds)
    reader = JournalReader(copy)
    attempt(lambda: list(reader.events()))
    compare(reader, None)
    attempt(lambda: list(reader.histories(reader.places([summary.task for summary in reader.tasks()]))))
    for command in odds.sample(COMMANDS, 3):
        ask(command, copy)


def ask(command: list[str], run: Path) -> int:
    """A command may refuse; what else it raises is a fault, and so is a control character. Gives its exit code."""
    said = Captured()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([str(run) if word == "RUN" else word for word in command])
    assert code in (0, 1, 2), code
    steering = [c for c in said.getvalue() if (c < " " and c not in "\n\t") or "\x7f" <= c < "\xa0"]
    assert command[0] == "export" or not steering, steering
    return code


class Captured(StringIO):
    """Standard output as a command uses it: text, bytes, and UTF-8 only."""

    @property
    def buffer(self) -> Captured:
        return self

    def write(self, said: Any) -> int:
        return super().write(said.decode() if isinstance(said, bytes) else said.encode().decode())


def forged(data: bytes, odds: Random) -> bytes:
    """A segment written anew, of which one part is not what a writer makes."""
    payloads = [payload_of(data, *place) for place in frames(data)]
    bad = odds.randrange(len(payloads) + 3)
    out = bytearray(pack_header())
    for number, payload in enumerate(payloads):
        kind = payload[0]
        if kind != EVENTS:
            continue
        out += forged_frame(odds, len(out)) if number == bad else pack_frame(EVENTS, payload[1], len(out), ZSTD)
    if odds.random() < 0.3:
        return bytes(out)
    events_end = len(out)
    for kind, payload in payloads:
        if kind != EVENTS:
            summary = len(out)
            body = forged_index(payload, odds) if odds.random() < 0.7 else payload
            out += pack_frame(kind, body, len(out), ZSTD)
    places = (events_end, summary) if odds.random() < 0.8 else (odds.choice((0, 2**63, 2**64 - 1, 20)), summary)
    return bytes(out) + pack_trailer(*places)


def payload_of(data: bytes, begin: int, end: int) -> tuple[int, bytes]:
    flags, body = data[begin + FRAME_HEAD_BYTES - 1], data[begin + FRAME_HEAD_BYTES : end]
    return flags >> 1, zstandard.ZstdDecompressor().decompress(body) if flags & COMPRESSED else body


def forged_frame(odds: Random, offset: int) -> bytes:
    match odds.randrange(5):
        case 0:
            return packed(odds.choice((SUMMARY, MAP, 3, 100)), hostile(odds), offset)
        case 1:
            return raw_frame(bomb(odds), offset)
        case 2:
            return packed(EVENTS, hostile(odds), offset)
        case 3:
            whole = msgspec.msgpack.encode(some_events(odds))
            return packed(EVENTS, spoilt(whole, odds), offset)
        case _:
            return packed(EVENTS, msgspec.msgpack.encode([changed(event, odds) for event in some_events(odds)]), offset)


def packed(kind: int, payload: bytes, offset: int) -> bytes:
    return pack_frame(kind, payload, offset, ZSTD)


def raw_frame(body: bytes, offset: int) -> bytes:
    """A frame that is said to be compressed."""
    from zlib import crc32

    flags = bytes((EVENTS << 1 | COMPRESSED,))
    return MARKER + struct.pack("<II", len(body), crc32(body, crc32(flags, offset))) + flags + body


def bomb(odds: Random) -> bytes:
    claimed = odds.choice((2**30 + 1, 2**35, 2**40, 2**63, 2**64 - 3))
    begun = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", claimed) + b"\x01\x00\x00"
    nothing_said = zstandard.ZstdCompressor(write_content_size=False).compress(b"\xc0" * 1000)
    return odds.choice((begun, nothing_said, ZSTD.compress(b"\xdd\x01\0\0\0" + bytes(2**24)), odds.randbytes(50)))


def some_events(odds: Random) -> list[Any]:
    events = [
        msgspec.to_builtins(event, builtin_types=(bytes, msgspec.msgpack.Ext)) for group in groups(1) for event in group
    ]
    return odds.sample(events, 6)


def changed(found: Any, odds: Random) -> Any:
    """With some of its parts replaced by others, left out, or repeated."""
    if odds.random() < 0.05:
        return odds.choice((value(odds), text(odds), odds.choice(ODD_NUMBERS), b"", b"x" * 16, -1, 10**6, "0.1.0", EXT))
    if isinstance(found, list):
        parts = [changed(part, odds) for part in found]
        return parts if odds.random() < 0.95 else parts[: odds.randrange(len(parts) + 1)] + parts[:1]
    if isinstance(found, dict):
        return {key: changed(part, odds) for key, part in found.items() if odds.random() < 0.95}
    return found


EXT = msgspec.msgpack.Ext(1, b"\xff\xff\xff")


def hostile(odds: Random) -> bytes:
    """MessagePack that lies of its length, is nested without end, or of odd types."""
    deep = odds.choice((b"\x91", b"\x81\xa1a", b"\x94\xa5start\xa1t\x00")) * odds.choice((50, 1_100, 200_000))
    many = odds.choice((b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")) + odds.choice((b"\xff" * 4, b"\x7f\xff\xff\xff"))
    odd = odds.choice((b"\xc1", b"\xa2\xff\xfe", b"\xd6\xff\0\0\0\0", b"\xd4\x05\0", b"\xc4\x01a", b"\x81\x90\x01"))
    step = b"\xdd\0\0\0\x01\x96\xa5start\xa50.1.0\x00\xcb\0\0\0\0\0\0\0\0\xc4\0"
    return (
        odds.choice((b"", b"\x91", b"\xdd\0\0\0\x01", step))
        + odds.choice((deep, many, odd))
        + odds.choice((b"", b"\xc0"))
    )


def forged_index(payload: bytes, odds: Random) -> bytes:
    """A summary or a map that passes its checksum and speaks of what is not there."""
    if odds.random() < 0.2:
        return odds.choice((hostile(odds), spoilt(payload, odds)))
    found: Any = msgspec.msgpack.decode(payload)
    if odds.random() < 0.3:
        return msgspec.msgpack.encode(changed(found, odds))
    another_number(found, odds)
    return msgspec.msgpack.encode(found)


def another_number(found: Any, odds: Random) -> None:
    """Replace one whole number anywhere in it."""
    while isinstance(found, list | dict) and found:
        place = odds.choice(list(found) if isinstance(found, dict) else range(len(found)))
        if isinstance(found[place], int):
            found[place] = odds.choice((-1, 0, 5, 7, 300, 2**31, 2**63, 2**64 - 1))
            return
        found = found[place]


def forge_blob(copy: Path, odds: Random) -> None:
    path = next((copy / "blobs").glob("*/*.zst"))
    path.write_bytes(odds.choice((bomb(odds), b"", odds.randbytes(20), spoilt(path.read_bytes(), odds))))
    attempt(lambda: BlobStore(copy / "blobs").get(bytes.fromhex(path.stem)))
    attempt(lambda: BlobStore(copy / "blobs").get(digest(b"nothing")))


def _read_back(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = segment_path(Path(folder) / "journal", 1)
        path.parent.mkdir()
        path.write_bytes(data)
        attempt(lambda: list(JournalReader(folder).events()))


FIRST = pack_header() + pack_frame(EVENTS, b"\x90", HEADER_BYTES, ZSTD)

GROWING: dict[str, Callable[[int], None]] = {
    "what looks like frames": lambda n: _read_back(FIRST + (MARKER + struct.pack("<IIB", 6 * n, 0, 0)) * n),
    "beginnings of frames": lambda n: _read_back(FIRST + MARKER * n),
    "a tail of zeros": lambda n: _read_back(FIRST + bytes(1_000 * n)),
    "nothing but beginnings": lambda n: _read_back((MARKER + struct.pack("<IIB", 6 * n, 0, 0)) * n),
}
