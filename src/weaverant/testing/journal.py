"""A journal in memory, for tests of what writes and reads journals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from weaverant.events import Event
from weaverant.journal.null import NullJournal


class MemoryJournal(NullJournal):
    """Keeps events as bytes, so that reading them back gives what a file would give, and blobs by digest."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded: list[bytes] = []
        self.blobs: dict[bytes, str] = {}

    def append(
        self, event: Event, durable: Callable[[], None] | None = None, blobs: Mapping[bytes, str] | None = None
    ) -> None:
        super().append(event, durable, blobs)
        self.encoded.append(_encode(event))
        self.blobs.update(blobs or {})

    def events(self) -> list[Event]:
        """Everything appended so far, decoded anew."""
        return [_decode(data) for data in self.encoded]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder[Event](Event).decode
