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


class Health:
    """Up, paused (it said when to come back), or out (it kept failing; one call at a time probes it).

    Probes go after 1, 2, 4 ... 30 s. One reply brings the replica back up; how many requests it then gets at once is
    the window's to say.
    """

    def __init__(self, now: float) -> None:
        self.answered = False
        self._recent: deque[bool] = deque(maxlen=RECENT)  # True: failed
        self._row = 0
        self._out = False
        self._probing = False
        self._probe_at = now
        self._gap = 0.0
        self._paused_until = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until a request may be sent to it; 0.0 now; inf while a probe is under way."""
        if self._out and self._probing:
            return math.inf
        at = max(self._paused_until, self._probe_at) if self._out else self._paused_until
        return max(0.0, at - now)

    def begin(self, now: float) -> None:
        """A request is sent. To a replica that is out, it is the probe."""
        if self._out:
            self._probing = True

    def reply(self, now: float) -> None:
        self.answered = True
        self._row = 0
        self._recent.append(False)
        self._up()

    def failed(self, now: float, doubtful: bool = False) -> None:
        """Server or network trouble. It is `doubtful` whether it is the replica's where the same call failed before:
        one that is up and has answered others is none the worse for it."""
        if doubtful and self.answered and not self._out:
            return
        self._row += 1
        self._recent.append(True)
        if not self._out and not self._failing():
            return
        # Requests sent before it went out may fail long after: they are no verdict of the probe.
        if not self._out or self._probing:
            self._gap = min(2 * self._gap, LONGEST_PROBE_S) if self._gap else 1.0
            self._probe_at = now + self._gap
        self._out = True
        self._probing = False

    def pause(self, now: float, seconds: float) -> None:
        """The server asked everybody to come back after so many seconds. A shorter pause never ends a longer one."""
        self._paused_until = max(self._paused_until, now + seconds)
        self._up()  # it answers

    def dropped(self, now: float) -> None:
        """A request was cancelled. If it was the probe, another may probe at once."""
        self._probing = False

    def describe(self, now: float) -> str:
        """For people; empty while it is up."""
        if self._out:
            when = "being tried now" if self._probing else f"next try in {math.ceil(self.wait(now))} s"
            return f"out: {self._row} failures, {when}"
        if now < self._paused_until:
            return f"paused {math.ceil(self._paused_until - now)} s (rate limit)"
        return ""

    def _up(self) -> None:
        if self._out:
            self._out = self._probing = False
            self._row = 0
            self._gap = 0.0
            self._recent.clear()

    def _failing(self) -> bool:
        many = len(self._recent) >= FEWEST and 2 * sum(self._recent) > len(self._recent)
        return self._row >= IN_A_ROW or many
