"""What a server of one's own costs, shared among the calls that it served.

A call pays for the time it was in flight, and calls that overlap share each instant equally. So all calls together
pay the hourly price of the time in which at least one was in flight, and each pays less the fuller the server is.
"""

from __future__ import annotations


class Meter:
    """Egalitarian processor sharing with a virtual clock that runs at one over the number of calls; O(1) an event.

    Times are seconds of one clock that never runs backwards, such as the event loop's.
    """

    def __init__(self, dollars_per_hour: float) -> None:
        self._rate = dollars_per_hour / 3600.0
        self._virtual = 0.0
        """Seconds that a call which was always in flight would have paid for."""
        self._now = 0.0
        self._calls = 0

    def begin(self, now: float) -> float:
        """A call is in flight from now on. What is returned is to be given to `end`."""
        self._advance(now)
        if not self._calls:
            self._virtual = 0.0  # nobody looks back further, and small numbers keep their last digits
        self._calls += 1
        return self._virtual

    def end(self, began: float, now: float) -> float:
        """The call is over; gives its dollars."""
        self._advance(now)
        self._calls -= 1
        return (self._virtual - began) * self._rate

    def _advance(self, now: float) -> None:
        if self._calls:
            self._virtual += (now - self._now) / self._calls
        self._now = now
