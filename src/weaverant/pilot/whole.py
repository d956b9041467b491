"""Sums over all rows: those that have ended and those that are left.

Of those left an earlier run (`--reuse`) may have some: they will take what such rows took here, where it answered. For
the others nobody has an answer yet, so they take what all rows would have taken had nobody answered.
"""

from __future__ import annotations

import math

from msgspec import Struct

from weaverant.pilot.earlier import Earlier
from weaverant.pilot.intervals import Interval
from weaverant.pilot.sample import Measure, Sample
from weaverant.pilot.seen import Kept, Row, Seen

NOTHING = Interval(0.0, 0.0, 0.0)
UNKNOWN = Interval(math.inf, 0.0, math.inf)


class Figure(Struct, frozen=True):
    """Something that rows take."""

    here: Measure
    """As it went in this run."""
    anew: Measure
    """As it would have gone had no call been answered by an earlier run or a cache."""


class Whole:
    """`rest` trials are left; None where nobody knows how many, and then all is told of one."""

    def __init__(self, seen: Seen, earlier: Earlier, trials: int, rest: int | None) -> None:
        ended = seen.ended
        self.rest = rest
        self.prices = earlier.prices({kept.fingerprint for row in ended.values() for kept in row.kept if kept.reused})
        """US dollars of calls that were answered before, by fingerprint."""
        self.sample = Sample(ended, trials)
        self._seen = seen
        self._priced = Sample({key: row for key, row in ended.items() if self._has_prices(row)}, trials)
        self._alike = Sample({key: row for key, row in ended.items() if earlier.has(row.digest)}, trials)
        left = earlier.left(row.digest for row in seen.rows.values())
        self.known = min(left, rest or 0) if self._alike.rows else 0
        """At most so many of those left an earlier run has."""

    def of(self, figure: Figure) -> Interval:
        """Of all rows."""
        return self.with_done(figure.here, self.left(figure))

    def with_done(self, here: Measure, left: Interval) -> Interval:
        """With those that have ended, where it is no figure of one row."""
        done = 0.0 if self.rest is None else math.fsum(map(here, self.sample.rows))
        return plus(left, Interval(done, done, done))

    def left(self, figure: Figure) -> Interval:
        """Of those that are left."""
        return self._left(figure, self.sample)

    def cost_left(self, seconds: Interval | None) -> Interval:
        """US dollars for those that are left, which take so many seconds: servers that are paid by the hour cost their
        time. Infinite where nobody knows."""
        hourly = self._seen.hourly / 3600 if self.rest is not None else 0.0
        if not hourly:
            return self._left(Figure(lambda row: row.cost, lambda row: row.cost + self._before(row)), self._priced)
        by_call = Figure(lambda row: row.cost - row.by_hour, lambda row: row.cost - row.by_hour + self._before(row))
        return plus(self._left(by_call, self._priced), UNKNOWN if seconds is None else times(seconds, hourly))

    def _left(self, figure: Figure, sample: Sample) -> Interval:
        """`sample`: the rows that tell how it would have gone anew."""
        if self.rest is None:
            return sample.each(figure.anew) if sample.rows else UNKNOWN
        alike = self._alike.rest(figure.here, self.known) if self.known else NOTHING
        anew = self.rest - self.known
        if not anew:
            return alike
        return plus(alike, sample.rest(figure.anew, anew) if sample.rows else UNKNOWN)

    def _before(self, row: Row) -> float:
        """What its calls cost that were answered before, those that cost a server's time apart."""
        return math.fsum(self.prices.get(kept.fingerprint, 0.0) for kept in row.kept if not self._unpaid(kept))

    def _has_prices(self, row: Row) -> bool:
        return all(self._unpaid(kept) or (kept.reused and kept.fingerprint in self.prices) for kept in row.kept)

    def _unpaid(self, kept: Kept) -> bool:
        """Whether no such call is paid for by itself."""
        return self._seen.free(kept.model) or bool(self._seen.hourly_of(kept.model))


def plus(one: Interval, other: Interval) -> Interval:
    """Both together, where they may well go up together."""
    return Interval(one.value + other.value, one.low + other.low, one.high + other.high)


def times(one: Interval, factor: float) -> Interval:
    return Interval(one.value * factor, one.low * factor, one.high * factor)
