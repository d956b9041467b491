"""Who was heard when, by the clock of the one that listens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

DEAF = 1.5
"""Lease times without any call, after which the listener takes itself for deaf, and no peer for silent."""


class Presence:
    """All times in seconds. While the listener itself stood still, half a lease time has passed at most."""

    def __init__(self, lease: float, expected: Iterable[int], now: float) -> None:
        """The `expected` epochs count as heard now."""
        self.now = now
        """The last time that anything was called, without the time of standing still."""
        self.silent: set[int] = set()
        """Unheard for a lease time once; nothing but `forget` undoes it."""
        self._lease = lease
        self._deaf = 0.0
        self._heard: OrderedDict[int, float] = OrderedDict((epoch, now) for epoch in sorted(expected))
        """Longest ago first."""

    def hear(self, epoch: int, now: float) -> None:
        self._pass(now)
        self._heard[epoch] = self.now
        self._heard.move_to_end(epoch)

    def forget(self, epoch: int) -> None:
        self.silent.discard(epoch)
        self._heard.pop(epoch, None)

    def look(self, now: float) -> list[int]:
        """All that are silent."""
        self._pass(now)
        while self._heard:
            epoch, heard = next(iter(self._heard.items()))
            if self.now - heard < self._lease:
                break
            del self._heard[epoch]
            self.silent.add(epoch)
        return sorted(self.silent)

    @property
    def deadline(self) -> float | None:
        """When the next will be silent, unless it is heard."""
        return next(iter(self._heard.values())) + self._lease + self._deaf if self._heard else None

    def _pass(self, now: float) -> None:
        gap = now - self._deaf - self.now
        if gap > DEAF * self._lease:
            self._deaf += gap - self._lease / 2
        self.now = max(self.now, now - self._deaf)
