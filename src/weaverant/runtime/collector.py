"""Python's cyclic collector while a run goes on: it looks seldom, and never at what waits.

It counts objects made less objects freed, and then walks all that were made since it looked last. A row that goes on
frees about as many as it makes, so with thousands of rows in flight it walked hundreds of thousands of objects in one
go, 0.2 s at 20,000 rows, to find no garbage: our own code makes none. So its count may go as high as the rows in flight
justify, and what new rows bring is set apart from what it walks (`bench/bench_stall.py` tells its longest walk).
"""

from __future__ import annotations

import gc
from threading import Lock
from typing import ClassVar

FIRST = 20_000
"""Objects. With Python's own thresholds a hop costs about a tenth more at 1,000 rows in flight, and half as much again
or more at 20,000 (`bench/bench_hops.py`)."""
OBJECTS_A_ROW = 32
"""Twice what a hop has in its hands. Garbage of users' code may grow to as many for each row in flight."""
OLD, OLD_A_ROW = 1_000_000, 500
"""Garbage that has been walked once, as part of what was alive then, may grow to so many objects: looking at it means
to walk all that is alive."""
MOST = 2**31 - 1
"""That Python takes."""
ROWS_A_STEP = 64
"""Some 5,000 objects."""


def thresholds(rows: int) -> tuple[int, int, int]:
    """The collector's, where at most so many rows are in flight."""
    first = min(max(FIRST, OBJECTS_A_ROW * rows), MOST)
    return first, min(max(OLD, OLD_A_ROW * rows) // first, MOST), 100


class Collector:
    """Set for a run of at most so many rows in flight, until it is over; for all runs of the process that go on.

    Who has switched the collector off, or has it look more seldom, keeps that; who has set objects apart, too: a run
    adds none to them then, for they could not be told from its own when it is over.
    """

    _lock: ClassVar[Lock] = Lock()
    _going_on: ClassVar[list[Collector]] = []
    _before: ClassVar[tuple[int, int, int]] = (0, 0, 0)
    """Thresholds as they were before the first run."""
    _apart: ClassVar[bool] = False
    """Somebody had set objects apart before the first run."""

    def __init__(self, rows: int) -> None:
        self._limit = rows
        self._rows = 0
        with self._lock:
            if not self._going_on:
                Collector._before = gc.get_threshold()
                Collector._apart = gc.get_freeze_count() > 0
            self._going_on.append(self)
            self._set()

    def rows(self, rows: int) -> None:
        """So many are in flight now. While they become more, what is alive is set apart; but not much at a time, for
        garbage among it stays until a run is over."""
        if rows >= self._rows + ROWS_A_STEP:
            self._rows = rows
            if not self._apart and gc.get_count()[0] < FIRST:
                gc.freeze()

    def over(self) -> None:
        with self._lock:
            self._going_on.remove(self)
            if self._going_on:
                self._set()
            else:
                gc.set_threshold(*self._before)
            if not self._apart:
                gc.unfreeze()

    def _set(self) -> None:
        if self._before[0]:
            wanted = thresholds(sum(run._limit for run in self._going_on))
            gc.set_threshold(*map(max, wanted, self._before))
