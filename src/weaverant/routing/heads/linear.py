"""`ridge` and `logistic`: one weight for each direction and model, drawn to nought.

Models that were graded on the same queries are solved together. Support: as many graded answers as would pin the value
at that point down as well as all of them do, 1 / (x' A^-1 x) - penalty for A = X'X + penalty * I.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings, mean_scores
from weaverant.routing.scores import Floats

ROUNDS = 200
CLOSE = 1e-5
_MARGIN = 1e-3
"""Scores are probabilities: a straight line is cut off here."""


class Ridge:
    """A straight line in the vector: least squares."""

    GRID: ClassVar[tuple[Settings, ...]] = ({"penalty": 10}, *({"penalty": p} for p in (0.3, 1, 3, 10, 30, 100)))

    def __init__(self, settings: Settings, centre: Floats, weights: Floats, mean: Floats, inverse: Floats) -> None:
        self.prior = float(settings["penalty"])
        self._centre, self._weights, self._mean, self._inverse = centre, weights, mean, inverse

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Ridge:
        penalty = float(settings["penalty"])
        x = given.vectors.astype(np.float64)
        models, dims = scores.shape[1], x.shape[1]
        centre, weights, inverse = np.zeros((models, dims)), np.zeros((dims, models)), np.zeros((models, dims, dims))
        mean = cls._start(mean_scores(scores))
        for rows, columns in _alike(scores):
            if not len(rows):  # never asked: the mean of all is all that is known
                inverse[columns] = np.eye(dims) / penalty
                continue
            middle = x[rows].mean(axis=0)
            centred = x[rows] - middle
            normal = centred.T @ centred + penalty * np.eye(dims)
            y = scores[np.ix_(rows, columns)]
            centre[columns], inverse[columns] = middle, np.linalg.inv(normal)
            weights[:, columns], mean[columns] = cls._solve(centred, y, penalty, mean[columns])
        return cls(settings, centre, weights, mean, inverse)

    @staticmethod
    def _start(mean: Floats) -> Floats:
        return mean

    @staticmethod
    def _solve(x: Floats, y: Floats, penalty: float, mean: Floats) -> tuple[Floats, Floats]:
        """(dims, M) weights and (M,) values at the centre."""
        normal = x.T @ x + penalty * np.eye(x.shape[1])
        return np.linalg.solve(normal, x.T @ (y - mean)).astype(np.float64), mean

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Ridge:
        names = ("centre", "weights", "mean", "inverse")
        centre, weights, mean, inverse = (arrays[name].astype(np.float64) for name in names)
        return cls(settings, centre, weights, mean, inverse[arrays["same"].astype(np.int64)])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        unique, same = np.unique(self._inverse, axis=0, return_inverse=True)
        found = {"centre": self._centre, "weights": self._weights, "mean": self._mean}
        return {**found, "inverse": unique, "same": same.reshape(-1)}

    def predict(self, given: Given) -> Estimate:
        x = given.vectors.astype(np.float64)
        found = x @ self._weights + (self._mean - np.einsum("md,dm->m", self._centre, self._weights))
        support = np.empty(found.shape)
        before: Floats | None = None
        for model, (centre, inverse) in enumerate(zip(self._centre, self._inverse, strict=True)):
            if before is None or not np.array_equal(inverse, self._inverse[model - 1]):
                away = x - centre
                spread = np.einsum("nd,nd->n", away @ inverse, away) / np.maximum((away**2).sum(axis=1), 1e-12)
                before = np.maximum(1.0 / spread - self.prior, 0.0)
            support[:, model] = before
        return Estimate(self._probability(found), support)

    @staticmethod
    def _probability(value: Floats) -> Floats:
        return np.clip(value, _MARGIN, 1.0 - _MARGIN)


class Logistic(Ridge):
    """A straight line in the log-odds: maximum likelihood, scores between 0 and 1 as shares of answers."""

    GRID: ClassVar[tuple[Settings, ...]] = ({"penalty": 1}, *({"penalty": p} for p in (0.1, 0.3, 1, 3, 10)))

    @staticmethod
    def _start(mean: Floats) -> Floats:
        return np.log(mean / (1.0 - mean))

    @staticmethod
    def _solve(x: Floats, y: Floats, penalty: float, mean: Floats) -> tuple[Floats, Floats]:
        """Newton steps with the Hessian's upper bound (Boehning 1988), with Nesterov's momentum: one factorisation for
        all models and steps."""
        wide = np.hstack([x, np.ones((len(x), 1))])
        drawn = np.full(wide.shape[1], penalty)
        drawn[-1] = 1e-6
        bound = np.linalg.inv(wide.T @ wide / 4.0 + np.diag(drawn))
        weights = np.vstack([np.zeros((x.shape[1], y.shape[1])), mean])
        ahead, pace = weights, 1.0
        for _ in range(ROUNDS):
            slope = wide.T @ (_sigmoid(wide @ ahead) - y) + drawn[:, None] * ahead
            new = ahead - bound @ slope
            quicker = (1.0 + np.sqrt(1.0 + 4.0 * pace * pace)) / 2.0
            ahead, change = new + (pace - 1.0) / quicker * (new - weights), np.abs(new - weights).max()
            weights, pace = new, quicker
            if change < CLOSE:
                break
        return weights[:-1], weights[-1]

    @staticmethod
    def _probability(value: Floats) -> Floats:
        return np.clip(_sigmoid(value), _MARGIN, 1.0 - _MARGIN)


def _sigmoid(value: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0)))


def _alike(scores: Floats) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Models that were graded on the same queries: those rows, and their columns."""
    seen = ~np.isnan(scores)
    patterns, of = np.unique(seen, axis=1, return_inverse=True)
    for number in range(patterns.shape[1]):
        yield np.flatnonzero(patterns[:, number]), np.flatnonzero(of.reshape(-1) == number)
