"""When a call gets a second request, to another replica, because the first takes longer than nearly all do."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

RECENT = 500
"""Latencies that the quantile is taken of."""

FEWEST = 50

MOST_HEDGED = 0.05
"""Share of calls that are hedged at most: where everything is slow, hedging would double the load."""


class Hedge:
    """`quantile` is the share of recent calls that a call must outlast; 0.0: none is hedged."""

    def __init__(self, quantile: float) -> None:
        self.on = quantile > 0.0
        self._quantile = quantile
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._calls = 0
        self._hedged = 0

    def seen(self, seconds: float) -> None:
        """A request was answered after so many seconds."""
        if len(self._recent) >= RECENT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(seconds)
        insort(self._sorted, seconds)

    def delay(self) -> float:
        """Seconds after which the call that begins now may be hedged; inf before there are enough to go by."""
        self._calls += 1
        if len(self._sorted) < FEWEST:
            return math.inf
        return self._sorted[min(len(self._sorted) - 1, int(self._quantile * len(self._sorted)))]

    def allow(self) -> bool:
        """Whether one more call may be hedged; if so, it counts."""
        if self._hedged + 1 > MOST_HEDGED * self._calls:
            return False
        self._hedged += 1
        return True
