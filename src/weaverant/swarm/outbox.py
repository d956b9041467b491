"""One direction of a link, at the side that sends: what has a number, and who holds it (`shared.py`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any

from msgspec.msgpack import Encoder, Ext

from weaverant.message import Message, Role
from weaverant.step import message_value
from weaverant.swarm.shared import (
    FREED,
    MESSAGE,
    MESSAGE_ONCE,
    MESSAGE_PART,
    MOST_BYTES,
    MOST_OWNERS,
    REF,
    ROLES,
    SAID,
    SAID_REF,
    SHARE_FROM,
    TALK,
    TALK_FROM,
    TERMS,
    TERMS_ONCE,
    TEXT,
    Talk,
    Terms,
)


class Slot:
    """One shared thing, as its sender knows it."""

    __slots__ = ("holders", "key", "number", "ref", "said", "size")

    def __init__(self, key: Hashable, number: int, size: int) -> None:
        self.key = key
        self.number = number
        self.size = size
        """Bytes."""
        self.holders = 0
        self.ref: Ext | None = None
        self.said: dict[str, Ext] | None = None
        """By role: the text as a message."""


class Owner:
    """What one owner holds."""

    __slots__ = ("held", "talks")

    def __init__(self) -> None:
        self.held: set[Slot] = set()
        self.talks: dict[Terms, tuple[Slot, tuple[Message, ...], int]] = {}
        """The last conversation under these terms, and how many bytes it took."""


class Outbox:
    """One direction of a link, at the side that sends. `share_from` None or 0: nothing is shared."""

    def __init__(self, share_from: int | None = SHARE_FROM) -> None:
        self.offloaded = 0
        """How many things got a number so far."""
        self.saved = 0
        """Bytes that were not sent, because a number stood for them."""
        self.held_bytes = 0
        self._from = share_from or 0
        self._message_from = self._from // MESSAGE_PART
        self._short = self._from // 4 or sys.maxsize
        """Texts of fewer characters are never shared."""
        self._slots: dict[Hashable, Slot] = {}
        self._owners: dict[str, Owner] = {}
        self._fresh: list[Slot] = []
        """Numbered for what is being packed."""
        self._freed: list[int] = []
        """Not yet told to the other side."""
        self._free: list[int] = []
        self._count = 0

    def __len__(self) -> int:
        """How many things have a number now."""
        return len(self._slots)

    def adopt(self, owner: str) -> bool:
        """From now on the owner may hold things; False where nothing is shared, or too many do."""
        if owner in self._owners:
            return True
        if not self._from or not owner or len(self._owners) >= MOST_OWNERS:
            return False
        self._owners[owner] = Owner()
        return True

    def knows(self, owner: str) -> bool:
        return owner in self._owners

    def pack(self, value: Any, owner: str = "") -> Any:
        """Plain data, messages, terms and talks as MessagePack can hold them, for an owner that was adopted; else
        nothing is shared. What comes of it must be sent, or taken back with `undo`, before anything else is packed."""
        if self._fresh:
            self._fresh.clear()
        return self._pack(value, self._owners.get(owner))

    def undo(self, owner: str) -> None:
        """What was packed last, for this owner, could not be sent."""
        by = self._owners.get(owner)
        if by is None:
            return
        by.talks.clear()
        for slot in self._fresh:
            by.held.discard(slot)
            self._forget(slot)
            self._free.append(self._freed.pop())  # the other side never heard of it
        self._fresh.clear()

    def release(self, owner: str) -> bool:
        """The owner needs nothing any more. False where it was never adopted."""
        by = self._owners.pop(owner, None)
        if by is None:
            return False
        for slot in by.held:
            slot.holders -= 1
            if not slot.holders:
                self._forget(slot)
        return True

    def freed(self) -> Ext | None:
        """What the other side is to forget, if anything: once this is said the numbers are given again."""
        if not self._freed:
            return None
        told, self._freed = self._freed, []
        self._free += told
        return Ext(FREED, _encode(told))

    def _pack(self, value: Any, by: Owner | None) -> Any:
        kind = _type(value)
        if kind is str:
            return value if by is None or len(value) < self._short else self._text(value, by)
        if kind is list or kind is tuple:
            short = self._short
            return [
                item
                if (kind := _type(item)) in _AS_THEY_ARE or (kind is str and len(item) < short)
                else self._pack(item, by)
                for item in value
            ]
        if kind is dict:
            return {key: item if type(item) in _AS_THEY_ARE else self._pack(item, by) for key, item in value.items()}
        if kind is Message:
            return self._message(value, by)
        if kind is Talk:
            return self._talk(value, by)
        if kind is Terms:
            return self._terms(value, by)
        return value

    def _text(self, text: str, by: Owner) -> str | Ext:
        slot = self._slots.get(text)
        if slot is None:
            if len(text) < self._from and (text.isascii() or len(text.encode()) < self._from):
                return text
            data = text.encode()
            slot = self._new(text, len(data), by)
            return text if slot is None else Ext(TEXT, _number(slot) + data)
        return self._again(slot, by)

    def _terms(self, terms: Terms, by: Owner | None) -> Ext:
        if by is None:
            return Ext(TERMS_ONCE, _encode(terms))
        slot = self._slots.get(terms)
        if slot is None:
            data = _encode(terms)
            slot = self._new(terms, len(data), by)
            return Ext(TERMS_ONCE, data) if slot is None else Ext(TERMS, _number(slot) + data)
        return self._again(slot, by)

    def _message(self, message: Message, by: Owner | None) -> Ext:
        content = message.content
        if by is None:
            return Ext(MESSAGE_ONCE, _encode(message_value(message)))
        if (
            type(content) is str
            and not message.tool_calls
            and message.tool_call_id is None
            and message.reasoning is None
            and message.role in _ROLE_BYTES
        ):
            return self._said(message.role, content, by)
        slot = self._slots.get(message)
        if slot is not None:
            return self._again(slot, by)
        value = message_value(message)
        if type(content) is str:
            value[1] = self._pack(content, by)
        data = _encode(value)
        slot = self._new(message, len(data), by)
        return Ext(MESSAGE_ONCE, data) if slot is None else Ext(MESSAGE, _number(slot) + data)

    def _said(self, role: Role, text: str, by: Owner) -> Ext:
        """A message that is nothing but a text."""
        slot = self._slots.get(text)
        if slot is not None:
            if slot not in by.held:
                by.held.add(slot)
                slot.holders += 1
            self.saved += slot.size
            said = slot.said
            if said is None:
                said = slot.said = {}
            ref = said.get(role)
            if ref is None:
                ref = said[role] = Ext(SAID_REF, _ROLE_BYTES[role] + _short_number(slot))
            return ref
        if len(text) >= self._message_from:
            data = text.encode()
            slot = self._new(text, len(data), by)
            if slot is not None:
                return Ext(SAID, _ROLE_BYTES[role] + _number(slot) + data)
        return Ext(MESSAGE_ONCE, _encode((role, text)))

    def _talk(self, talk: Talk, by: Owner | None) -> Any:
        messages = talk.messages
        if by is None or len(messages) < TALK_FROM:
            return [self._message(message, by) for message in messages]
        slot, before, size = by.talks.get(talk.terms) or (None, (), 0)
        kept = len(before)
        if messages[:kept] == before:
            self.saved += size
        else:
            pairs = zip(before, messages, strict=False)
            kept = next((n for n, (old, new) in enumerate(pairs) if old != new), len(messages))
            size = 0
        data = _encode([self._message(message, by) for message in messages[kept:]])
        if slot is None:
            slot = self._new(talk, 0, by)
        if slot is None:
            return [self._message(message, by) for message in messages]
        by.talks[talk.terms] = slot, messages, size + len(data)
        return Ext(TALK, _number(slot) + kept.to_bytes(4, "little") + data)

    def _again(self, slot: Slot, by: Owner) -> Ext:
        if slot not in by.held:
            by.held.add(slot)
            slot.holders += 1
        self.saved += slot.size
        ref = slot.ref
        if ref is None:
            ref = slot.ref = Ext(REF, _short_number(slot))
        return ref

    def _new(self, key: Hashable, size: int, by: Owner) -> Slot | None:
        """None where there is no room for it."""
        if self.held_bytes + size > MOST_BYTES:
            return None
        free = self._free
        if free:
            number = free.pop()
        else:
            number = self._count
            self._count += 1
        slot = self._slots[key] = Slot(key, number, size)
        slot.holders = 1
        by.held.add(slot)
        self._fresh.append(slot)
        self.held_bytes += size
        self.offloaded += 1
        return slot

    def _forget(self, slot: Slot) -> None:
        del self._slots[slot.key]
        self.held_bytes -= slot.size
        self._freed.append(slot.number)


def _number(slot: Slot) -> bytes:
    return slot.number.to_bytes(4, "little")


def _short_number(slot: Slot) -> bytes:
    return slot.number.to_bytes(4, "little").rstrip(b"\0")


_type: Callable[[object], Any] = type
_AS_THEY_ARE = frozenset((int, float, bool, type(None), bytes))
_ROLE_BYTES: dict[str, bytes] = {role: bytes((number,)) for number, role in enumerate(ROLES)}
_encode = Encoder().encode
