"""Intervals: the paired bootstrap over queries, and the t interval for means over overlapping re-splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray

from weaverant.routing.scores import Floats

DRAWS = 2000
CHUNK = 64
"""Draws that are worked on at once: what bounds the memory."""


class Interval(msgspec.Struct, frozen=True):
    """A value and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half its width."""
        return (self.high - self.low) / 2


def weights(groups: NDArray[np.int64], sets: Sequence[str], draws: int = DRAWS, seed: int = 0) -> Iterator[Floats]:
    """How often each query was drawn, `CHUNK` draws at a time: arrays of (draws, queries).

    What is drawn are groups (equal queries come together), with replacement, as many of each set as it has; a group
    that lies in several sets counts to that of its first query. The same arguments give the same draws.
    """
    _, first, unit_of = np.unique(groups, return_index=True, return_inverse=True)
    _, code = np.unique(np.asarray(sets, dtype=str), return_inverse=True)
    strata = [np.flatnonzero(code[first] == number) for number in range(int(code.max()) + 1)] if len(code) else []
    rng = np.random.default_rng(seed)
    for begin in range(0, draws, CHUNK):
        size = min(CHUNK, draws - begin)
        counts = np.zeros((size, len(first)))
        for units in strata:
            if not len(units):  # all its queries count elsewhere
                continue
            drawn = rng.integers(0, len(units), (size, len(units))) + len(units) * np.arange(size)[:, None]
            counts[:, units] = np.bincount(drawn.ravel(), minlength=size * len(units)).reshape(size, len(units))
        yield counts[:, unit_of]


Statistic = Callable[[Floats], Floats]
"""From weights (draws, queries) to values (draws,) or (draws, several)."""


def spread(statistics: Mapping[str, Statistic], queries: int, drawn: Iterator[Floats]) -> dict[str, list[Interval]]:
    """Each statistic on the queries as they are, and its 2.5 % and 97.5 % quantiles over the same draws.

    All statistics see the same draws, so differences are paired. Draws in which one is not defined (NaN) do not count.
    """
    plain = np.ones((1, queries))
    values = {name: np.atleast_2d(statistic(plain).T).T for name, statistic in statistics.items()}
    parts: dict[str, list[Floats]] = {name: [] for name in statistics}
    for some in drawn:
        for name, statistic in statistics.items():
            parts[name].append(statistic(some).reshape(len(some), -1))
    return {name: intervals(values[name][0], np.concatenate(parts[name])) for name in statistics}


def intervals(values: Floats, drawn: Floats) -> list[Interval]:
    """For each of the values (k,) its interval by the draws (draws, k)."""
    return [_interval(float(value), column) for value, column in zip(values, drawn.T, strict=True)]


def _interval(value: float, drawn: Floats) -> Interval:
    fine = drawn[np.isfinite(drawn)]
    if not len(fine):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(fine, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def corrected(values: Sequence[float], tested: float, trained: float) -> Interval:
    """The mean over J random re-splits of one table, with the corrected resampled t (Nadeau and Bengio, 2003).

    The splits share queries, so their variance s² is too small: s² (1/J + tested/trained) takes the place of s²/J, with
    J - 1 degrees of freedom. `tested` and `trained` are queries of a split.
    """
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return Interval(mean, float("nan"), float("nan"))
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = student(count - 1) * sqrt(variance * (1 / count + tested / trained))
    return Interval(mean, mean - half, mean + half)


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
    if freedom <= len(table):
        return table[freedom - 1]
    return 1.959964 + 2.372271 / freedom + 2.8225 / freedom**2  # Cornish and Fisher, to three digits from here on
