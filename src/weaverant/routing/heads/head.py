"""What a head is given, what it says, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.scores import Floats

Settings: TypeAlias = Mapping[str, float]
"""Hyper-parameters by name."""
Arrays: TypeAlias = Mapping[str, NDArray[np.generic]]

PRIOR = 2.0
"""Graded answers that all models together lend to each of them."""


class Given(NamedTuple):
    """Queries as a head sees them."""

    texts: Sequence[str]
    """n of them."""
    vectors: Vectors
    """(n, dims)"""
    folder: str = ""
    """Of the checkpoint that made the vectors, for a head that trains it; empty where another encoder did."""

    def take(self, rows: NDArray[np.int64]) -> Given:
        numbers: list[int] = rows.tolist()
        return Given([self.texts[n] for n in numbers], self.vectors[rows], self.folder)


class Estimate(NamedTuple):
    """(n, M) each, before calibration."""

    p: Floats
    """The expected score, in [0, 1]."""
    support: Floats
    """How many graded answers speak, weighted by how near they are."""


class Head(Protocol):
    """Thread-safe, and the same for a query whatever else is asked beside it (but for the last bits of sums)."""

    prior: float
    """How many graded answers the prior counts as, beside `Estimate.support`."""

    def predict(self, given: Given) -> Estimate: ...

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What it learned, for `load`."""
        ...


def deviation(p: Floats, support: Floats, prior: float) -> Floats:
    """The standard deviation of a Beta distribution of mean `p` that rests on `support + prior` graded answers."""
    return np.sqrt(p * (1.0 - p) / (support + prior + 1.0))


def mean_scores(scores: Floats) -> Floats:
    """(M,) The mean score of each model, drawn a little to that of all, so that one never asked has that one."""
    seen = ~np.isnan(scores)
    whole = float(np.nansum(scores) / seen.sum()) if seen.any() else 0.5
    found = (np.nansum(scores, axis=0) + PRIOR * whole) / (seen.sum(axis=0) + PRIOR)
    return np.clip(found, 1e-4, 1.0 - 1e-4)
