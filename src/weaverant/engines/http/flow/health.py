"""Whether a replica should be asked at all."""

from __future__ import annotations

import math
from collections import deque

IN_A_ROW = 5
"""Failures one after the other that put a replica out."""

RECENT = 20
FEWEST = 10
"""More than half of the last `RECENT` outcomes failed, of at least `FEWEST`: out as well."""

LONGEST_PROBE_S = 30.0

ALIVE_S = 1.0
"""Seconds after a reply for which a replica is not to blame for a request that it got."""


class Health:
    """Up, paused (it said when to come back), or out (it kept failing; one call at a time probes it).

    Probes go after 1, 2, 4 ... 30 s. One reply brings the replica back up; how many requests it then gets at once is
    the window's to say.
    """

    def __init__(self, now: float) -> None:
        self.answered = False
        self.ready_at = -math.inf
        """From when on a request may be sent to it; inf while a probe is under way."""
        self._replied_at = -math.inf
        self._recent: deque[bool] = deque(maxlen=RECENT)  # True: failed
        self._row = 0
        self._out = False
        self._probing = False
        self._probe_at = now
        self._gap = 0.0
        self._paused_until = -math.inf
        self._paused_for = ""

    def wait(self, now: float) -> float:
        """Seconds until a request may be sent to it; 0.0 now; inf while a probe is under way."""
        return max(0.0, self.ready_at - now)

    def begin(self) -> bool:
        """A request is sent. Whether it is the probe, as it is to a replica that is out; to be told when it ends."""
        if self._out:
            self._probing = True
            self._plan()
        return self._out

    def reply(self, now: float) -> None:
        self.answered = True
        self._replied_at = now
        self._row = 0
        self._recent.append(False)
        if self._out:
            self._up()

    def failed(self, now: float, probe: bool, arrived: bool = False, again: bool = False) -> None:
        """Server or network trouble. `arrived`: the request reached it; `again`: the same call had failed here before.

        A prompt that a server cannot stand fails at every try and says nothing of the server: six such rows of 200
        kept one out for two minutes that answered all others. So while it answers, these do not count.
        """
        if arrived and not self._out and ((again and self.answered) or now - self._replied_at < ALIVE_S):
            return
        self._row += 1
        self._recent.append(True)
        # Requests sent before it went out may fail long after: they are no verdict of the probe.
        if not (probe if self._out else self._failing()):
            return
        longer = self._gap if again and arrived else 2 * self._gap
        self._gap = min(longer, LONGEST_PROBE_S) if self._gap else 1.0
        self._probe_at = now + self._gap
        self._out = True
        self._probing = False
        self._plan()

    def pause(self, now: float, seconds: float, why: str) -> None:
        """Nothing is sent for so many seconds; `why` is for people. A shorter pause never ends a longer one."""
        if now + seconds > self._paused_until:
            self._paused_until, self._paused_for = now + seconds, why
        if self._out:  # it answers
            self._up()
        self._plan()

    def dropped(self, probe: bool) -> None:
        """A request was cancelled. If it was the probe, another may probe at once."""
        if probe:
            self._probing = False
            self._plan()

    def describe(self, now: float) -> str:
        """For people; empty while it is up."""
        if self._out:
            when = "being tried now" if self._probing else f"next try in {math.ceil(self.wait(now))} s"
            return f"out: {self._row} failures, {when}"
        if now < self._paused_until:
            return f"paused {math.ceil(self._paused_until - now)} s ({self._paused_for})"
        return ""

    def _up(self) -> None:
        self._out = self._probing = False
        self._row = 0
        self._gap = 0.0
        self._recent.clear()
        self._plan()

    def _plan(self) -> None:
        at = max(self._paused_until, self._probe_at) if self._out else self._paused_until
        self.ready_at = math.inf if self._out and self._probing else at

    def _failing(self) -> bool:
        many = len(self._recent) >= FEWEST and 2 * sum(self._recent) > len(self._recent)
        return self._row >= IN_A_ROW or many
