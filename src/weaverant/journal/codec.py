"""Events to bytes and back. A frame of events is one MessagePack array of events.

The rule for newer journals: a newer minor format may have event kinds and trailing fields that this reader does not
know; it skips both. A newer major format is refused (segment.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, get_args

import msgspec
from msgspec import Struct

from weaverant.events import Event
from weaverant.journal.segment import MINOR, Frame, Segment

_array_head = struct.Struct(">BI")
ARRAY_HEAD_BYTES = _array_head.size

encode_into = msgspec.msgpack.Encoder().encode_into
"""`encode_into(event, buffer, offset)`: no bytes object for each event."""


class EventHead(Struct, array_like=True, frozen=True, gc=False):
    """What every event begins with: its tag, and for a task's event the task."""

    tag: str
    task: Any = None


def tag_of(kind: type[Struct]) -> str:
    """An event class's tag in the file."""
    return str(kind.__struct_config__.tag)


KNOWN_TAGS = frozenset(tag_of(kind) for kind in get_args(Event))

UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding hostile bytes raises."""

_decode_all = msgspec.msgpack.Decoder(list[Event]).decode
_decode_one: Callable[[Any], Event] = msgspec.msgpack.Decoder(Event).decode
_decode_heads = msgspec.msgpack.Decoder(list[EventHead]).decode
_decode_raw = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode


def new_payload() -> bytearray:
    """An empty payload: room for the array's head, then events are encoded at its end."""
    return bytearray(ARRAY_HEAD_BYTES)


def finish_payload(payload: bytearray, count: int) -> None:
    """Write the array's head, now that the number of events is known."""
    _array_head.pack_into(payload, 0, 0xDD, count)


def events_of(segment: Segment, frame: Frame, wanted: Callable[[EventHead], bool] | None = None) -> list[Event]:
    """The frame's events: all, or those whose head is wanted (of the others nothing but the head is decoded)."""
    try:
        if wanted is not None:
            return _decode_chosen(frame.payload, wanted)
        return _decode_all(frame.payload) if segment.minor <= MINOR else _decode_chosen(frame.payload, _anything)
    except UNDECODABLE as error:
        raise segment.corrupt(frame.offset, f"the events of a frame cannot be decoded ({error})") from error


def _anything(_: EventHead) -> bool:
    return True


def _decode_chosen(payload: bytes, wanted: Callable[[EventHead], bool]) -> list[Event]:
    heads = _decode_heads(payload)
    chosen = [i for i, head in enumerate(heads) if head.tag in KNOWN_TAGS and wanted(head)]
    if not chosen:
        return []
    raw = _decode_raw(payload)
    return [_decode_one(raw[i]) for i in chosen]
