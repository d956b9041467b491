"""The statistics of an evaluation: intervals, paired tests, spread over seeds, flips. Pure functions.

The unit is the problem. Where several seeds answered the same problems, a problem's seeds move together: they are no
further evidence about other problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb, sqrt
from typing import NamedTuple

Z = 1.959964
"""The normal quantile of two-sided 95 % intervals."""

DRAWS = 20_000
"""Bootstrap samples: the ends of a 95 % interval then vary by about a fiftieth of its width."""


class Interval(NamedTuple):
    """A 95 % interval, both ends included."""

    low: float
    high: float


class Spread(NamedTuple):
    """Mean, and standard deviation of a sample (n - 1 below the line); None of fewer than two values."""

    mean: float
    sd: float | None


class Flips(NamedTuple):
    """How outcomes went from one system to another, in numbers of problems (means over seeds)."""

    gained: float
    """Wrong before, right now."""
    both_right: float
    both_wrong: float
    lost: float
    """Right before, wrong now."""


def wilson(right: float, total: int) -> Interval:
    """The 95 % interval of Wilson (1927) for a share, in 0..1; all of it where nothing was counted.

    `right` may be a mean over seeds: with the number of problems as `total` the interval is then too wide, never too
    narrow, for the mean of several seeds varies less than one of them.
    """
    if not total:
        return Interval(0.0, 1.0)
    n, p = total, right / total
    middle, half = p + Z * Z / (2 * n), Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return Interval((middle - half) / (1 + Z * Z / n), (middle + half) / (1 + Z * Z / n))


def mcnemar(gained: int, lost: int) -> float:
    """The two-sided p of McNemar's exact test (1947): how likely it is that problems on which two equally good
    systems differ split at least so unevenly. 1 where they differ on none."""
    n, few = gained + lost, min(gained, lost)
    return min(1.0, 2 * sum(comb(n, k) for k in range(few + 1)) / 2**n)


def bootstrap(differences: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval:
    """The 95 % percentile interval of a mean over problems, which are drawn anew with replacement (Efron 1979).

    `differences` holds one number a problem: its outcome in one system less that in the other, mean over seeds.
    The same numbers give the same interval. (0, 0) of no problems.
    """
    import numpy as np  # deferred: only whoever evaluates needs it

    if not differences:
        return Interval(0.0, 0.0)
    values, counts = zip(*sorted(Counter(differences).items()), strict=True)
    n = len(differences)
    drawn = np.random.default_rng(seed).multinomial(n, np.array(counts) / n, size=draws)
    low, high = np.quantile(drawn @ np.array(values) / n, (0.025, 0.975))
    return Interval(float(low), float(high))


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation. `ValueError` of no values."""
    if not values:
        raise ValueError("the mean of nothing: expected at least one value")
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Spread(mean, None)
    return Spread(mean, sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)))


def flips(before: Sequence[Sequence[bool]], after: Sequence[Sequence[bool]]) -> Flips:
    """Flips from one system to the other, as means over seeds; both are `[seed][problem]`."""
    counts = Counter(
        pair
        for olds, news in zip(before, after, strict=True)
        for pair in zip(olds, news, strict=True)
    )  # fmt: skip
    seeds = len(before) or 1
    ways = ((False, True), (True, True), (False, False), (True, False))
    return Flips(*(counts[way] / seeds for way in ways))


def percentages(shares: Sequence[float], digits: int = 1) -> list[float]:
    """Shares of a whole as percentages that sum to 100 after rounding: the largest remainders are rounded up."""
    unit = 10**digits
    total = sum(shares)
    if not total:
        return [0.0] * len(shares)
    exact = [share / total * 100 * unit for share in shares]
    whole = [int(value) for value in exact]
    left = 100 * unit - sum(whole)
    for index in sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])[:left]:
        whole[index] += 1
    return [value / unit for value in whole]
