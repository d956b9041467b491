"""Does a server serve more requests at once, or do they only wait longer? Told by comparing two levels of load.

A server with S slots, of which a client fills `level` > S, makes everybody wait (level - S) / throughput longer: the
throughput itself says the same, but where replies differ much in length it takes thousands of them to see it. So
latencies are compared, with those above twice the median counted as just that: what the wait adds is the same for
short replies and long ones, and it is the long ones that make the noise.
"""

from __future__ import annotations

import math
from statistics import fmean, pstdev

LEAST = 12
MOST = 100
"""Requests in a cohort, where twice as many as are in flight are not more."""

LEAST_S = 0.5
"""Seconds over which a cohort is spread at least: a pause of this process must not look like the server's."""

PATIENCE = 8.0
"""Requests, or a tenth of a cohort if that is more, that may begin while fewer than the level are in flight."""

SKEWED = 0.4
SKIPS = 0.08
"""Where latencies are spread by more than `SKEWED`, the late overtake the early so often that `Cohort.served` falls
short of the slots by a factor of less than 1 + `SKIPS` / spread² (lognormal service times of sigma 0.5 to 1.5, 4 to
256 slots: by 1.04 to 1.5)."""

ALIKE = 0.1
"""Latencies spread by less tell nothing by the rate of replies."""

SAFE = 0.76
"""While so large a share of a level was seen to be worked on at once, no less of it is found."""


class Cohort:
    """Requests begun while `level` of them were in flight, and what became of them."""

    def __init__(self, level: int, now: float, size: float) -> None:
        self.level = level
        self.begun = 0
        self.short = 0
        """Begun while fewer than `level` were in flight."""
        self.patience = 2.0 * level
        """Of `short`, fewer say nothing yet."""
        self.full = False
        """All that count have begun."""
        self.seconds: list[float] = []
        self.served = 0
        """So many were worked on at once, if the server takes them in order: those that some request overtook, and
        itself."""
        self.rate = 0.0
        """Replies a second of the server at this level, all of them."""
        self._size = max(LEAST, 2 * level, min(size, MOST))
        self._replies = 0
        self._from: float | None = None
        self._until: float | None = None
        self._last = now
        self._together = 0
        self._cap = 0.0

    @property
    def hungry(self) -> bool:
        """The client had too few requests to fill the level, or too few were answered: nothing can be said."""
        if self._until is not None:
            return self.begun < LEAST / 2
        return self.short > max(self.patience, 0.1 * self.begun)

    def begin(self, now: float, in_flight: int) -> None:
        if self._until is not None:
            self.begun += now == self._until
        elif self._from is None:
            self._together = self._together + 1 if now == self._last else 1
            self._last = now
            self.short += 1
            if in_flight >= self.level:
                self._from, self.begun, self.short, self.patience = now, self._together, 0, PATIENCE
        else:
            if in_flight < self.level:
                self.short += 1
            self.begun += 1
            if self.begun >= self._size and now - self._from >= LEAST_S:
                self._until, self.full = now, True

    def end(self, now: float, began: float, reply: bool, served: int) -> None:
        if self._from is None:
            return
        self._replies += reply
        if began < self._from or (self._until is not None and began > self._until):
            return
        if reply:
            self.seconds.append(now - began)
            if served > self.served:
                self.served = served
        else:
            self.begun -= 1

    def done(self, now: float) -> bool:
        """All that matters is known: whoever is still in flight is slower than twice the median."""
        if self._until is None or self._from is None or len(self.seconds) < max(1.0, 0.6 * self.begun):
            return False
        self._cap = self._cap or cap(self)
        if len(self.seconds) < self.begun and now - self._until < self._cap:
            return False
        self.rate = self._replies / (now - self._from)
        return True


def median(seconds: list[float], count: int) -> float:
    """Of `count` values, of which those missing in `seconds` are larger than all."""
    ordered = sorted(seconds)
    return ordered[min(count // 2, len(ordered) - 1)]


def cap(*cohorts: Cohort) -> float:
    """Latencies above it count as just that. Where few are served at once, the wait is itself as long as a few
    replies, so the cap is higher."""
    level = max(cohort.level for cohort in cohorts)
    values = [value for cohort in cohorts for value in cohort.seconds]
    return (2.0 + 12.0 / level) * median(values, sum(cohort.begun for cohort in cohorts))


def mean(cohort: Cohort) -> float:
    """Mean of the cut latencies."""
    return fmean(_cut(cohort, cap(cohort)))


def spread(cohort: Cohort) -> float:
    """Standard deviation of the cut latencies, over their mean."""
    cut = _cut(cohort, cap(cohort))
    return pstdev(cut) / (fmean(cut) or 1.0)


def slots(low: Cohort, high: Cohort, skew: float) -> float:
    """How many of the `high.level` requests the server works on at once."""
    most = cap(low, high)
    short, long = _cut(low, most), _cut(high, most)
    below = sum(value < most for value in short + long) / (len(short) + len(long))
    # Little's law where hardly anything was cut: replies that are alike come in volleys, which are ill counted.
    rate = high.rate if skew > SKEWED else high.level / (fmean(long) or 1.0)
    found = high.level - rate * (fmean(long) - fmean(short)) / (below or 1.0)
    found = max(found, min(high.served, SAFE * high.level))
    if skew > SKEWED:
        found = min(found, high.served * (1 + SKIPS / skew**2))
    return min(found, low.level * _speedup(low, high)) if skew > ALIKE else found


def _speedup(low: Cohort, high: Cohort) -> float:
    """How much more the server did at the higher load, two standard errors and 10 % granted; hardly less, unless it
    became slower meanwhile. It is the noisiest of the signs, and the only one of a queue that is not served in order:
    there some wait for ever, and the median not at all."""
    errors = [pstdev(cohort.seconds) / fmean(cohort.seconds) / len(cohort.seconds) ** 0.5 for cohort in (low, high)]
    return max(0.9, high.rate / (low.rate or high.rate)) * (1.1 + 2.0 * math.hypot(*errors))


def _cut(cohort: Cohort, most: float) -> list[float]:
    return [min(value, most) for value in cohort.seconds] + [most] * (cohort.begun - len(cohort.seconds))
