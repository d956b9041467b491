"""How many requests at once keep a server busy, where it does not tell: tried out."""

from __future__ import annotations

from weaverant.engines.http.flow.trial import Cohort, mean, slots, spread

FIRST = 16
"""Requests in flight to begin with: as many as any hosted model takes. At a laptop's server, which works on one to
four, the others wait there until that is found out."""

OVER = 1.3
"""Requests in flight for each that the server works on: so many that it never idles."""

DIP = 0.7
"""From time to time only so much of the load is sent, to see whether that makes replies faster. That is 0.91 of what
the server works on, so it costs little; and one whose latency grows with its batch is given more for as long as its
throughput grows by about a quarter of what the load does (1.3 = (1 / 0.7) ** 0.74)."""

DOUBLES = 0.7
GROWS = 0.87
QUEUES = 1.03
"""The server works on that share of a doubled load: double again. On that share of the usual load: it may take more.
On that multiple of the dip only: all the rest waited."""

NOISE = 0.05
"""Standard error of a cohort's mean latency that is aimed at; three times that until something is settled."""

DRIFT = 0.3
"""Latency changed by more than that: look again at once."""

MOST_RESTS = 30
LEAST_RESTS = 4
LOSS = 0.01
"""Cohorts between two dips: so many that dips cost at most that share of the throughput."""


class Search:
    """Doubles the load until latencies say that requests wait, then keeps `OVER` times what the server works on.

    Nothing is concluded while the client has too few requests to fill the level; the level stays, a doubled one too.
    """

    def __init__(self, most: int, now: float, first: int = 0) -> None:
        self._most = most
        self._target = float(min(first or FIRST, most))
        self._doubling = True
        self._settled = self._more = False
        self._grown = self._shrunk = self._agreed = self._rest = 0
        self._spread = self._skew = self._usual = 0.0
        self._replies = 0
        self._marks: dict[float, int] = {}
        """Of requests in flight, by the moment in which they began. Of those that began in the same one, only the first
        to end needs it: no other overtook more."""
        self._other: Cohort | None = None
        self._here = Cohort(self._cruise, now, 0.0)
        self.level = self._here.level
        """Requests that may be in flight now."""

    @property
    def settled(self) -> bool:
        """Whether the level is what the server was found to work on, rather than what is to be tried next."""
        return self._settled

    def restart(self, target: float, now: float) -> None:
        """Begin anew from this load: something else than latency told it."""
        self._target = max(1.0, min(target, float(self._most)))
        self._doubling = self._settled = False
        self._grown = self._shrunk = self._agreed = self._rest = 0
        self._marks.clear()
        self._look_again(now)

    def bound(self, most: int, now: float) -> None:
        """Never more than `most` at once. Who was at the old bound follows to a higher one."""
        follows = self._target >= self._most
        self._most = most
        if follows or self._target > most:
            self._target = float(most)
        if follows or self._here.level > most:
            self._look_again(now)

    def lift(self, most: int) -> None:
        """The bound is higher. What is being measured goes on."""
        self._most = most

    def unbound(self, most: int, level: int, now: float) -> None:
        """The last bound was none, and `most` holds again: go on from the level before."""
        self._most = most
        self._target = float(min(level, most))
        self._look_again(now)

    def begin(self, now: float, in_flight: int) -> None:
        """A request is sent, the `in_flight`-th."""
        self._marks.setdefault(now, in_flight + self._replies)
        self._here.begin(now, in_flight)

    def end(self, now: float, began: float, reply: bool) -> None:
        """It is over."""
        # Of those in flight when it began, how many are left now: itself, and those it overtook.
        served = self._marks.pop(began, 0) - self._replies
        self._replies += 1
        here = self._here
        here.end(now, began, reply, served)
        if self._other is not None:
            self._other.end(now, began, reply, served)
        if here.full or here.short > here.patience:
            self._conclude(here, now)

    def _conclude(self, here: Cohort, now: float) -> None:
        if here.hungry:
            if self._doubling and self._other is not None:
                # What the client has fits into the doubled load, so to go back would only make some of it wait.
                self._target = float(here.level)
            self._look_again(now)
        elif here.done(now):
            self._learn(now)

    @property
    def _cruise(self) -> int:
        return max(1, round(min(self._target, self._most)))

    def _partner(self, level: int) -> int:
        """The level to compare with."""
        if self._doubling and level < self._most:
            return min(2 * level, self._most)
        return min(level - 1, max(int(DIP * level), 3)) if level > 1 else min(2, self._most)

    def _look_again(self, now: float) -> None:
        self._other = None
        self._measure(self._cruise, now)

    def _measure(self, level: int, now: float) -> None:
        noise = NOISE if self._settled else 3 * NOISE
        self._here = Cohort(level, now, (self._spread / noise) ** 2)
        self.level = level

    def _learn(self, now: float) -> None:
        here, other = self._here, self._other
        self._spread = spread(here)
        self._skew += 0.2 * (self._spread - self._skew) if self._skew else self._spread
        if other is None:
            self._rest_or_compare(here, now)
            return
        low, high = (here, other) if here.level < other.level else (other, here)
        self._judge(slots(low, high, self._skew), low.level, high.level)
        self._other = None
        self._usual = 0.0
        if self._doubling and here is high and here.level < self._most:
            self._other = here
            self._measure(self._partner(here.level), now)
        else:
            self._measure(self._cruise, now)

    def _rest_or_compare(self, here: Cohort, now: float) -> None:
        seconds = mean(here)
        self._usual = self._usual or seconds
        drifted = abs(seconds - self._usual) > max(DRIFT, self._spread / 2) * self._usual
        self._rest = 0 if drifted else max(0, self._rest - 1)
        level = self._partner(here.level)
        if self._rest or level == here.level:
            self._measure(self._cruise, now)
        else:
            self._other = here
            self._measure(level, now)

    def _judge(self, found: float, low: int, high: int) -> None:
        """The server was found to work on `found` of `high` requests at once; `low` was the other level."""
        found = min(found, float(high))
        if self._doubling:
            doubles = found > DOUBLES * high
            self._doubling = doubles and high < self._most
            self._target = float(high) if doubles else OVER * found if found > 1.1 * low else float(low)
        elif high >= self._most and OVER * found >= high:  # there is no more to be had
            self._agreed, self._rest, self._settled = 1, MOST_RESTS, True
        else:
            self._adjust(found, found > GROWS * high, found < QUEUES * low, high)
            self._target = max(1.0, min(self._target, float(self._most)))
            self._rest = self._rests(found)

    def _adjust(self, found: float, grows: bool, queues: bool, high: int) -> None:
        """Far off again: a step. About right, or far off for once: an average that moves less the longer it holds."""
        self._grown = self._grown + 1 if grows else 0
        self._shrunk = self._shrunk + 1 if queues else 0
        ratio = OVER * found / self._target
        if self._grown > (1 if self._agreed else 0):
            self._agreed = 0
            self._target = max(OVER * found, high + 1.0)
            self._doubling = self._grown > (2 if self._settled else 1)
        elif self._shrunk > 1:
            self._agreed = 0
            self._target /= OVER ** (self._shrunk - 1)
        else:
            self._target *= ratio ** max(0.25, 1 / (2 + self._agreed))
            if abs(ratio - 1.0) > 2 * NOISE and (ratio > 1.0) == self._more:
                self._agreed //= 2
            else:
                self._agreed += 1
        self._more = ratio > 1.0
        self._settled |= self._agreed > 1

    def _rests(self, found: float) -> int:
        """Cohorts until the next dip: none until two dips agreed, then ever more."""
        dip = self._partner(self._cruise)
        if dip > self._cruise:
            return LEAST_RESTS
        enough = max(LEAST_RESTS, round((1.0 - dip / found) / LOSS))
        return min(2 ** (self._agreed + 1) - 1 if self._agreed else 0, MOST_RESTS, enough)
