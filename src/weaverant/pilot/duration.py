"""How long the rest of a run will take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from weaverant.events import Capacity
from weaverant.pilot.intervals import Interval
from weaverant.pilot.seen import Load, Seen

ROUND = 2.0
"""Latencies that an engine needs at least until it takes twice as many calls at once."""

BURST_S = 1.0
"""Calls may be so many seconds ahead of a rate limit: a second's worth of them goes at once."""


class Part(NamedTuple):
    """One engine's share of the run."""

    load: Load
    calls: float
    """Its share of all calls, 0 to 1."""
    seconds: float
    """Its share of the seconds that they took."""
    capacity: Capacity


def duration(seen: Seen, calls: Interval, work: Interval, allowed: int) -> Interval | None:
    """Seconds for so many `calls` that are left, of `work` seconds together, with `allowed` at once of each engine;
    None where no model was called.

    At least: as the engines need that tell what they take; others take all that is allowed. Most likely: as fast as
    in the last half of the time so far. At most: as in all of it, start-up included, and the longest row behind that.
    """
    late, whole = seen.pace(0.5), seen.pace(0.0)
    if not whole or not seen.loads or not calls.value:
        return None
    parts = list(_parts(seen, allowed))
    clocks = [row.clock for row in seen.ended.values()]
    working = max(_working(part.seconds * work.low, part) for part in parts)
    limited = [max(_limited(part.calls * count, part) for part in parts) for count in (calls.low, calls.high)]
    least = max(min(clocks), working, limited[0] - BURST_S)
    likely = max(least, calls.value / (late or whole))
    most = max(calls.high / whole, limited[1]) + max(clocks)
    return Interval(likely, least, max(likely, most))


def _parts(seen: Seen, allowed: int) -> Iterator[Part]:
    loads = seen.loads
    calls, seconds = sum(load.calls for load in loads.values()), sum(load.seconds for load in loads.values())
    for name, load in loads.items():
        told = seen.capacities.get(name) or Capacity(allowed, allowed)
        capacity = Capacity(min(told.calls, allowed), min(told.most, allowed), told.per_minute)
        yield Part(load, load.calls / calls, load.seconds / seconds if seconds else 0.0, capacity)


def _working(work: float, part: Part) -> float:
    """Seconds in which its calls can take so many seconds together, while more of them are sent at once."""
    at_once, most = part.capacity.calls, part.capacity.most
    each = ROUND * part.load.seconds / part.load.calls
    begun = 0.0
    while at_once < most and work > at_once * each > 0.0:
        work -= at_once * each
        begun += each
        at_once = min(2 * at_once, most)
    return begun + work / at_once


def _limited(calls: float, part: Part) -> float:
    """Seconds for which its rate limits hold so many calls back."""
    return 60.0 * calls / part.capacity.per_minute if part.capacity.per_minute else 0.0
