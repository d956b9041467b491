"""One direction of a link, at the side that receives: numbers become what they stand for (`shared.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from msgspec.msgpack import Decoder

from weaverant.message import Message
from weaverant.step import message_of
from weaverant.swarm.shared import (
    FREED,
    MESSAGE,
    MESSAGE_ONCE,
    MOST_BYTES,
    REF,
    ROLES,
    SAID,
    SAID_REF,
    TALK,
    TERMS,
    TERMS_ONCE,
    TEXT,
    Terms,
)

Thing = TypeVar("Thing")


class Inbox:
    """`hook` turns numbers back into what they stand for. It is called
    while a frame is decoded, in the order of its bytes."""

    def __init__(self) -> None:
        self.held_bytes = 0
        self._things: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._decode_part: Callable[[Any], list[Any]] = Decoder(list[Any], ext_hook=self._part).decode

    def __len__(self) -> int:
        return len(self._things)

    def hook(self, code: int, data: memoryview) -> Any:
        """`ValueError`, `TypeError` or `LookupError` for what no peer says."""
        if code == REF:
            return self._things[int.from_bytes(data, "little")]
        if code == SAID_REF:
            return Message(ROLES[data[0]], self._text(int.from_bytes(data[1:], "little")))
        if code == SAID:
            return Message(ROLES[data[0]], self._keep(data[1:5], str(data[5:], "utf-8"), len(data) - 5))
        if code == TALK:
            return self._talk(data)
        if code == MESSAGE_ONCE:
            return message_of(self._decode_part(data))
        if code == TEXT:
            return self._keep(data[:4], str(data[4:], "utf-8"), len(data) - 4)
        if code == FREED:
            return self._free(data)
        if code == MESSAGE:
            return self._keep(data[:4], message_of(self._decode_part(data[4:])), len(data) - 4)
        if code == TERMS:
            return self._keep(data[:4], _decode_terms(data[4:]), len(data) - 4)
        if code == TERMS_ONCE:
            return _decode_terms(data)
        raise ValueError(f"nothing is known of an extension {code}")

    def _part(self, code: int, data: memoryview) -> Any:
        """What may stand inside a message or a conversation."""
        if code in (TALK, FREED, TERMS, TERMS_ONCE):
            raise ValueError(f"an extension {code} inside a message")
        return self.hook(code, data)

    def _talk(self, data: memoryview) -> tuple[Message, ...]:
        number, kept = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        thing: object = self._things.get(number, ())
        new = tuple(self._decode_part(data[8:]))
        if type(thing) is not tuple or not {Message}.issuperset(map(type, new)):
            raise ValueError("that is no conversation")
        before = cast("tuple[Message, ...]", thing)
        if kept > len(before):
            raise ValueError(f"{kept} messages are to stay, and there are {len(before)}")
        self._sizes.setdefault(number, 0)
        now = self._things[number] = before[:kept] + new
        return now

    def _text(self, number: int) -> str:
        text = self._things[number]
        if type(text) is not str:
            raise TypeError(f"number {number} is no text")
        return text

    def _free(self, data: memoryview) -> None:
        for number in _decode_numbers(data):
            del self._things[number]
            self.held_bytes -= self._sizes.pop(number)

    def _keep(self, data: memoryview, thing: Thing, size: int) -> Thing:
        number = int.from_bytes(data, "little")
        # What is freed is told at the end of a frame: for so long twice as much may be held.
        if number in self._things or size < 0 or self.held_bytes + size > 2 * MOST_BYTES:
            raise ValueError(f"number {number} is given twice, or too much is shared")
        self._things[number] = thing
        self._sizes[number] = size
        self.held_bytes += size
        return thing


_decode_terms: Callable[[Any], Terms] = Decoder(Terms).decode
_decode_numbers: Callable[[Any], list[int]] = Decoder(list[int]).decode
