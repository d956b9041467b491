"""Deadlines of many requests, looked at a few times a second: a timer for each would cost more than the request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

TICK_S = 0.1
LATE_S = 0.5
"""How late a look may come before the event loop is taken to have stood still."""


class Ticker:
    """Calls `look`, with the time on the loop's clock, every `TICK_S` seconds for as long as it gives True.

    After a pause (SIGSTOP, a machine that slept, code that held the loop) timers run before sockets are read. What came
    meanwhile is in time as far as anybody can tell, so the first look after a pause waits for one more tick.
    """

    __slots__ = ("_due", "_look", "_loop", "_paused", "_tick")

    def __init__(self, look: Callable[[float], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._look = look
        self._tick: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._paused = False

    def start(self) -> None:
        """Tick, if it does not yet."""
        if self._tick is None:
            self._due = self._loop.time() + TICK_S
            self._tick = self._loop.call_at(self._due, self._go)

    def stop(self) -> None:
        if self._tick is not None:
            self._tick.cancel()

    def _go(self) -> None:
        now, self._tick = self._loop.time(), None
        self._paused = not self._paused and now > self._due + LATE_S
        if self._paused or self._look(now):
            self.start()
