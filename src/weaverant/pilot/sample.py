"""Rows that have ended, as observations of those that are left.

Trials of one row of the source are asked the same, and are alike: an observation is the row with all of its trials
together. Where only some of them have ended, the others count as those did on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import fmean

from weaverant.pilot.intervals import Interval, mean_of, share_of, total_of
from weaverant.pilot.seen import Row

Measure = Callable[[Row], float]
"""What one trial took."""


class Sample:
    """Some of the trials that have ended."""

    def __init__(self, rows: Mapping[str, Row], trials: int) -> None:
        """`rows` are trials by their key, `trials` how many there are of each row of the source."""
        by_source: dict[str, list[Row]] = {}
        for key, row in rows.items():
            by_source.setdefault(key.rpartition(".")[0], []).append(row)
        self.rows = list(rows.values())
        self._sources = list(by_source.values())
        self._trials = trials

    def each(self, measure: Measure) -> Interval:
        """The mean of one trial."""
        mean = mean_of(self._observed(measure))
        return Interval(*(part / self._trials for part in (mean.value, mean.low, mean.high)))

    def rest(self, measure: Measure, count: int) -> Interval:
        """The sum of so many further trials."""
        return total_of(self._observed(measure), count / self._trials)

    def share(self, hit: Callable[[Row], bool]) -> Interval:
        """The share of trials. As many of them count as would, each on its own, vary as much as whole rows did: between
        the number of rows and that of trials, and that of rows where all trials are alike."""
        total, hits = len(self.rows), sum(map(hit, self.rows))
        share, sources = hits / total, len(self._sources)
        apart = math.fsum((sum(map(hit, rows)) - share * len(rows)) ** 2 for rows in self._sources)
        variance = apart * sources / max(1, sources - 1) / total**2
        varied = share * (1 - share)
        count = min(max(varied / variance if variance else math.inf, sources), total) if varied else sources
        return share_of(share * count, count)

    def _observed(self, measure: Measure) -> list[float]:
        return [self._trials * fmean(map(measure, rows)) for rows in self._sources]
