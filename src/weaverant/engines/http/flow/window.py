"""How many requests one replica gets at once."""

from __future__ import annotations

from collections import deque
from typing import Literal

from weaverant.engines.http.flow.gauges import Gauges
from weaverant.engines.http.flow.search import Search

How = Literal["reply", "limited", "failed", "refused", "dropped"]
"""`reply`: 200. `limited`: 429, or 503 with Retry-After. `failed`: 5xx, network, timeouts. `refused`: other 4xx.
`dropped`: cancelled by us."""

QUIET_REPLIES = 400
QUIET_S = 30.0
"""So many replies and seconds without a rejection, and one more than the known ceiling is tried."""

FRESH_S = 10.0
"""For so long the server's own gauges count, and nothing is tried out."""

FAILING = 0.5
"""That share of the last ten or so requests, and the load is halved: overload, not an odd failure."""

REMEMBERED = 48
WITNESSES = 4
"""A rejected request says nothing of the window where so many of that many last replies were to requests that found as
many in flight: the server takes more, and refuses one now and then for another reason."""

FOUND = 0.75
"""A ceiling that falls below that share of what it was lifted to is one."""

LIFT_S, LONGEST_LIFT_S = 2.0, 600.0
"""Seconds after which such a refusal lifts the ceiling to twice as many, and how long that gets where the ceiling turns
out to have been one: four times as long with each."""

SMALL_QUEUE = 0.1
"""Waiting requests at a server that tells, for each running one: more are too many."""


class Window:
    """How many requests one replica gets at once: found by watching it, bounded by `most`.

    What is known of the server, in the order in which it counts: the number at which it rejects (a ceiling, raised
    carefully), what it says of its own queue, and what latencies say (`Search`).
    """

    def __init__(self, most: int, now: float, first: int = 0) -> None:
        """`first` is with how many to begin; 0: few."""
        self.in_flight = 0
        self._most = most
        self._search = Search(most, now, first)
        self._seconds = 0.0
        self._ceiling = most
        self._floor = 0
        self._step = 1
        self._before = most, 1
        self._proved = True
        self._proof_from = now
        self._quiet = 0
        self._limited_at = self._changed_at = now
        self._failures = 0.0
        self._told = 0
        self._told_at = -FRESH_S
        self._full = 0
        self._waited = False
        self._hold = now
        self._taken: deque[int] = deque(maxlen=REMEMBERED)
        """What the last requests that were replied to found in flight, themselves included."""
        self._lifted = 0
        """The ceiling that was tried because of a refusal for no reason, until it is known whether there is one."""
        self._lift_gap, self._lift_at = LIFT_S, now
        self._strikes = 0
        """Rejections that may be about the window, since the last that was not."""

    @property
    def size(self) -> int:
        """How many may be in flight now, at least 1."""
        return max(1, min(self._told or self._search.level, self._ceiling))

    @property
    def reach(self) -> int:
        """How many it may yet grow to: `size`, where that is settled."""
        settled = self._waited if self._told else self._search.settled
        return self.size if settled else max(self.size, min(self._most, self._ceiling))

    @property
    def room(self) -> bool:
        in_flight = self.in_flight
        return not in_flight or (in_flight < self._ceiling and in_flight < (self._told or self._search.level))

    def begin(self, now: float) -> int:
        """A request is sent. Gives how many are in flight with it."""
        self.in_flight = in_flight = self.in_flight + 1
        if in_flight > self._full:
            self._full = in_flight
        if not self._told:
            self._search.begin(now, in_flight)
        return in_flight

    def end(self, now: float, began: float, how: How, among: int = 0) -> None:
        """It is over; `began` is when it was sent, `among` what `begin` gave."""
        self.in_flight -= 1
        reply = how == "reply"
        if reply:
            self._taken.append(among)
            self._reply(now, began)
        elif how == "limited":
            self._reject(now, began, among)
        elif how == "failed":
            self._fail(now, began)
        if self._told and now - self._told_at > FRESH_S:
            self._search.restart(self._told, now)
            self._told = 0
        if not self._told:
            self._search.end(now, began, reply)

    def seconds(self) -> float:
        """Smoothed latency of replies; 0.0 before the first."""
        return self._seconds

    def gauge(self, now: float, gauges: Gauges) -> None:
        """What the server says of itself, told every second or so while there are requests.

        More where hardly any wait and the client filled its window; a tenth more than our share of those running
        where others wait, then no more for ten latencies: at one slot, a second request always waits.
        """
        size, full, self._full = self.size, self._full, self.in_flight
        self._told_at, self._told = now, size
        everybody = gauges.running + gauges.waiting
        if gauges.waiting > SMALL_QUEUE * gauges.running:
            self._waited = True
            share = self.in_flight / max(everybody, self.in_flight, 1.0)
            wanted = max(1, int((1 + SMALL_QUEUE) * gauges.running * share + 0.5))
            if wanted < size:
                self._told = wanted
                self._hold = now + 10 * max(1.0, self._seconds)
        elif full >= size and now >= self._hold:
            self._told = min(self._most, max(size + 1, int((1.25 if self._waited else 2.0) * size)))
            self._hold = now + min(max(1.0, self._seconds / 4), 5.0)

    def _reply(self, now: float, began: float) -> None:
        if not self._proved:
            self._prove(now, began)
        seconds, before = now - began, self._seconds
        self._seconds = before + 0.1 * (seconds - before) if before else seconds
        self._failures *= 0.9
        if self._ceiling < self._most:
            self._climb(now)

    def _climb(self, now: float) -> None:
        """Was the ceiling reached often enough, and long enough without a rejection, to try more?"""
        self._quiet += self.in_flight + 1 >= self._ceiling
        if self._quiet > QUIET_REPLIES and now - self._limited_at > QUIET_S:
            self._ceiling = min(self._ceiling + self._step, self._most)
            self._search.bound(self._ceiling, now)
            self._step *= 2
            self._quiet = QUIET_REPLIES - max(10, self._ceiling)

    def _reject(self, now: float, began: float, among: int) -> None:
        """About the window, or for no reason. Once one was for none, a single other one tells nothing either."""
        if among and sum(taken >= among for taken in self._taken) >= WITNESSES:
            self._strikes = 0
            self._lift(now)
        else:
            self._strikes += 1
            if not self._lifted or self._strikes > 1:
                self._limit(now, began)

    def _limit(self, now: float, began: float) -> None:
        """Rejected while `in_flight` others were not: if that is about the window, it is the server's ceiling.

        With far fewer in flight the server limits a rate, and it is the pause which it asks for that helps.
        """
        held = max(1, self.in_flight)
        if 2 * held < self.size:
            return
        if began >= self._changed_at:
            if self._proved:
                self._proved, self._proof_from, self._before = False, self._changed_at, (self._ceiling, self.size)
            self._changed_at, self._floor = now, self.size // 2
        self._ceiling = max(1, self._floor, min(self._ceiling, held))
        self._quiet, self._limited_at, self._step = 0, now, 1
        if self._ceiling < FOUND * self._lifted:
            self._lift_gap = min(4 * self._lift_gap, LONGEST_LIFT_S)
            self._lifted, self._lift_at = 0, now + self._lift_gap
        self._search.bound(self._ceiling, now)

    def _lift(self, now: float) -> None:
        """Refused though the server takes as many: what was taken for a ceiling may be none either."""
        if self._ceiling < self._most and now >= self._lift_at:
            if self._lifted:
                self._lift_gap = LIFT_S
            self._ceiling = self._lifted = min(2 * self._ceiling, self._most)
            self._lift_at = now + self._lift_gap
            self._search.lift(self._ceiling)

    def _prove(self, now: float, began: float) -> None:
        """A ceiling that was found by rejections is one if the server answered others of the same round. Where it
        rejected all of them, for a minute or as long as it was starting, their number was no reason."""
        if began >= self._changed_at:
            self._proved = True
            self._ceiling, level = self._before
            self._search.unbound(self._ceiling, level, now)
        elif began >= self._proof_from:
            self._proved = True

    def _fail(self, now: float, began: float) -> None:
        """Half the load, at most once a round: where several of the last requests failed, not for a single one."""
        self._failures = 0.9 * self._failures + 0.1
        if self._failures > FAILING and began >= self._changed_at:
            self._changed_at, self._failures = now, 0.0
            self._told = (self._told + 1) // 2
            self._search.restart(self._search.level / 2, now)
