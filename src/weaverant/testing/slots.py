"""A server's places: so many calls are worked on at once, the others wait in their order."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Slots(Generic[Item]):
    """Calls `start` for each entered item as soon as there is a place. An item keeps it until it `leave`s."""

    def __init__(self, size: int, start: Callable[[Item], None]) -> None:
        self.size = size
        self.running = 0
        self._start = start
        self._waiting: OrderedDict[Item, None] = OrderedDict()
        self._busy = 0.0
        self._since = time.monotonic()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return self.running >= self.size

    @property
    def busy(self) -> float:
        """Seconds that places were taken, all of them together."""
        return self._busy + self.running * (time.monotonic() - self._since)

    def enter(self, item: Item) -> None:
        self._waiting[item] = None
        self.fill()

    def leave(self, item: Item) -> None:
        """Give up the place, or the wait for one."""
        if item in self._waiting:
            del self._waiting[item]
        else:
            self._count(-1)
            self.fill()

    def fill(self) -> None:
        while self._waiting and not self.full:
            item, _ = self._waiting.popitem(last=False)
            self._count(1)
            self._start(item)

    def _count(self, change: int) -> None:
        now = time.monotonic()
        self._busy += self.running * (now - self._since)
        self._since = now
        self.running += change
