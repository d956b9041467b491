"""Tells owners that their events are safe, in order and in slices, so that the event loop never stalls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from weaverant.protocols import Clock

SLICE_SECONDS = 0.002
"""Time per loop iteration. Delivered in one go, thousands of acknowledgements would hold the loop for too long."""
_LOOK_EVERY = 16


class Acks:
    """Callbacks on their way to the event loop."""

    __slots__ = ("_clock", "_due", "_loop", "_scheduled")

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        self._clock = clock
        self._loop = loop
        self._due: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def deliver(self, callbacks: Sequence[Callable[[], None]]) -> None:
        """Call them after all delivered before: now, for one slice, the rest in later iterations of the loop."""
        self._due.extend(callbacks)
        if not self._scheduled:
            self._run()

    def _run(self) -> None:
        due = self._due
        self._scheduled = True
        end = self._clock.monotonic() + SLICE_SECONDS
        calls = 0
        try:
            while due:
                due.popleft()()
                calls += 1
                if calls % _LOOK_EVERY == 0 and self._clock.monotonic() >= end:
                    break
        finally:  # also where a callback raised: the loop reports it, the others still get their turn
            self._scheduled = bool(due)
            if due:
                self._loop.call_soon(self._run)
