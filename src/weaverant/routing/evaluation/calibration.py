"""Calibration: of the answers given 70 %, are 70 % right?"""

from __future__ import annotations

import msgspec
import numpy as np

from weaverant.routing.scores import Floats

BINS = 15


class Bin(msgspec.Struct, frozen=True):
    """Predictions in one stretch of [0, 1]."""

    count: int
    told: float
    """Their mean."""
    found: float
    """The mean score of the answers."""


class Calibration(msgspec.Struct, frozen=True):
    """Of predictions and outcomes: what is between them."""

    ece: float
    """Expected calibration error: the mean over predictions of |told - found| of their bin. Equal-width bins."""
    ece_mass: float
    """The same with bins of equally many predictions; equal ones stay together."""
    brier: float
    """The mean squared difference."""
    brier_base: float
    """That of one who always tells the mean outcome."""
    bins: tuple[Bin, ...]
    """Those of equal width that hold any, in order."""


def calibrated(p: Floats, outcome: Floats, bins: int = BINS) -> Calibration:
    """Arrays of any one shape; pairs with an unknown outcome (NaN) or no prediction (below 0) are left out."""
    known = np.isfinite(outcome) & (p >= 0)
    told, found = p[known], outcome[known]
    if not len(told):
        nan = float("nan")
        return Calibration(nan, nan, nan, nan, ())
    width = np.minimum((told * bins).astype(np.int64), bins - 1)
    edges = np.quantile(told, np.linspace(0, 1, bins + 1)[1:-1])
    wide = _binned(told, found, width)
    base = float(found.mean())
    return Calibration(
        _error(wide),
        _error(_binned(told, found, np.searchsorted(edges, told, side="right"))),
        float(np.mean((told - found) ** 2)),
        float(np.mean((base - found) ** 2)),
        wide,
    )


def _binned(told: Floats, found: Floats, where: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[Bin, ...]:
    count = np.bincount(where)
    sums = np.bincount(where, told), np.bincount(where, found)
    return tuple(
        Bin(int(number), float(a / number), float(b / number))
        for number, a, b in zip(count, *sums, strict=True)
        if number
    )


def _error(bins: tuple[Bin, ...]) -> float:
    return sum(one.count * abs(one.told - one.found) for one in bins) / sum(one.count for one in bins)
