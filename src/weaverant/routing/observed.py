"""What is measured of each member as it is asked: tokens, cost and latency, failures, and a breaker.

All of it follows from the sequence of observations and the times told with them, which are those of the workflow's own
clocks. A process has one for each compound; what a resumed run replays is observed again.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from weaverant.message import Usage

SHARE = 0.1
"""Of the newest observation in a mean: the weight of one halves after some seven more."""

RING = 128
"""Latencies kept of each member."""

FEWEST = 20
"""Latencies below which nobody speaks of a 95th percentile: of so many, one is beyond it."""

IN_A_ROW = 3
"""Failures that open the breaker."""

REST = 60.0
"""Seconds that it stays open, and that a trial may take."""

Health = Literal["closed", "open", "trial"]


@dataclass(slots=True)
class Mean:
    """An exponentially weighted mean; of few observations the plain one. None before the first."""

    value: float | None = None
    count: int = 0

    def add(self, value: float) -> None:
        self.count += 1
        old = self.value
        self.value = value if old is None else old + max(SHARE, 1.0 / self.count) * (value - old)


@dataclass(slots=True)
class Record:
    """Of one member."""

    prompt: Mean = field(default_factory=Mean)
    """Tokens a call."""
    completion: Mean = field(default_factory=Mean)
    cost: Mean = field(default_factory=Mean)
    """US dollars a call, failed ones included."""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RING))
    calls: int = 0
    failures: int = 0
    in_a_row: int = 0
    opened: float | None = None
    """Unix time at which the breaker opened, or its trial began."""
    trial: bool = False

    @property
    def p95(self) -> float | None:
        """Seconds; None while fewer than `FEWEST` are known. The nearest rank."""
        if len(self.seconds) < FEWEST:
            return None
        return sorted(self.seconds)[math.ceil(0.95 * len(self.seconds)) - 1]


class Observed:
    """What was measured of each member, by name. `at` is always Unix time as the workflow's `now()` tells it."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def of(self, name: str) -> Record:
        """Its record; an empty one for whom nobody has asked."""
        return self._records.setdefault(name, Record())

    def answered(self, name: str, at: float, seconds: float, usage: Usage) -> None:
        """It replied after so long."""
        record = self.of(name)
        record.calls += 1
        record.seconds.append(seconds)
        record.prompt.add(usage.prompt_tokens)
        record.completion.add(usage.completion_tokens)
        record.cost.add(usage.cost)
        record.in_a_row, record.opened, record.trial = 0, None, False

    def failed(self, name: str, at: float, cost: float = 0.0, seconds: float | None = None) -> None:
        """It failed, at such a cost. `seconds` where it was given up: it takes so long at least."""
        record = self.of(name)
        record.calls += 1
        record.failures += 1
        record.in_a_row += 1
        record.cost.add(cost)
        if seconds is not None:
            record.seconds.append(seconds)
        if record.trial or record.in_a_row >= IN_A_ROW:
            record.opened, record.trial = at, False

    def health(self, name: str, at: float) -> Health:
        """`open`: not to be asked. `trial`: one call may show whether it is well again."""
        record = self.of(name)
        if record.opened is None:
            return "closed"
        return "open" if at < record.opened + REST else "trial"

    def admit(self, name: str, at: float) -> bool:
        """Whether it may be asked now. The one call after a rest is the trial; until that has ended, or has taken as
        long as a rest, nobody else gets through."""
        health = self.health(name, at)
        if health == "trial":
            record = self.of(name)
            record.opened, record.trial = at, True
        return health != "open"
