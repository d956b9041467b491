"""A journal that keeps nothing: for `--no-journal` and for measuring what journaling costs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

from weaverant.errors import JournalError
from weaverant.events import Event
from weaverant.journal.acks import Acks
from weaverant.protocols import Clock


class NullJournal:
    """Implements `protocols.Journal` without storage. Acknowledges soon, in order, in slices."""

    def __init__(self, clock: Clock = time) -> None:
        self._clock = clock
        self._waiting: list[Callable[[], None]] = []
        self._acks: Acks | None = None
        self._closed = False

    def append(
        self, event: Event, durable: Callable[[], None] | None = None, blobs: Mapping[bytes, str] | None = None
    ) -> None:
        if self._closed:
            raise JournalError("the journal is closed: append before close()")
        if durable is not None:
            self._acknowledge(durable)

    async def flush(self) -> None:
        done = asyncio.get_running_loop().create_future()
        self._acknowledge(lambda: None if done.done() else done.set_result(None))
        await done

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self.flush()

    def _acknowledge(self, durable: Callable[[], None]) -> None:
        if not self._waiting:
            loop = asyncio.get_running_loop()
            self._acks = self._acks or Acks(loop, self._clock)
            loop.call_soon(self._deliver, self._acks)
        self._waiting.append(durable)

    def _deliver(self, acks: Acks) -> None:
        waiting, self._waiting = self._waiting, []
        acks.deliver(waiting)
