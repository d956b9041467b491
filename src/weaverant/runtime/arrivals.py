"""Outcomes on their way to the journal: many calls may be answered in one moment, and the event loop never stalls."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from weaverant.protocols import Clock
from weaverant.step import Ask
from weaverant.task import TaskRun

SLICE = 0.002
"""Seconds of recording in one iteration of the event loop."""
AT_ONCE = 256
"""Outcomes that are recorded where they come, some 15 us each, before the next has to wait for an iteration. Nobody
counts by the iteration: that would cost each of them more than waiting costs one in so many."""
_LOOK_EVERY = 16


class Arrivals:
    """A rush of outcomes, recorded in slices and in order. `broken`: one could not be recorded."""

    __slots__ = ("_broken", "_now", "_rush", "room")

    def __init__(self, clock: Clock, broken: Callable[[BaseException], None]) -> None:
        self.room = AT_ONCE
        """How many more may be recorded where they come. It is full again when all that waited are recorded."""
        self._now = clock.monotonic
        self._broken = broken
        self._rush: deque[tuple[TaskRun, Ask, Any, Callable[[Ask], None]]] = deque()

    def add(self, run: TaskRun, ask: Ask, outcome: Any, recorded: Callable[[Ask], None]) -> None:
        """Record it in one of the next iterations of the loop, then call `recorded`."""
        self._rush.append((run, ask, outcome, recorded))
        if len(self._rush) == 1:
            asyncio.get_running_loop().call_soon(self._slice)

    def record_all(self) -> None:
        """Now: for whoever is about to cancel some of them."""
        self._record(len(self._rush))

    def _slice(self) -> None:
        until = self._now() + SLICE
        while self._rush and self._now() < until:
            self._record(_LOOK_EVERY)
        if self._rush:
            asyncio.get_running_loop().call_soon(self._slice)
        else:
            self.room = AT_ONCE

    def _record(self, most: int) -> None:
        rush = self._rush
        while rush and most:
            most -= 1
            run, ask, outcome, recorded = rush.popleft()
            try:
                run.record(ask, outcome)
            except Exception as error:  # its task would wait for ever
                self._broken(error)
            recorded(ask)
