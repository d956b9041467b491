"""`knn`: the graded queries that are nearest, each by how near it is, shrunk to each model's mean.

p_m = (sum_j w_j y_jm + shrink * g_m) / (sum_j w_j + shrink), with w_j = max(0, cos(x, x_j)) ** power. The sums are over
those of the k nearest queries j on which m was graded.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings, mean_scores
from weaverant.routing.scores import Floats

ROWS = 512
"""Queries looked up at once: their likenesses to all others are in memory."""


class Neighbours:
    """Exact search; float32 products, sums in float64."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {"k": 100, "power": 1, "shrink": 5},
        *(
            {"k": k, "power": power, "shrink": s}
            for k in (10, 30, 60, 100, 200)
            for power in (1, 4)
            for s in (2, 5, 20)
        ),
    )

    def __init__(self, settings: Settings, vectors: Vectors, scores: Floats, mean: Floats) -> None:
        self.vectors, self.scores, self.mean = vectors, scores, mean
        self._k, self._power = int(settings["k"]), float(settings["power"])
        self.prior = float(settings["shrink"])
        self._seen = ~np.isnan(scores)
        self._complete = bool(self._seen.all())
        self._values = np.where(self._seen, scores, 0.0)

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Neighbours:
        return cls(settings, np.ascontiguousarray(given.vectors), scores, mean_scores(scores))

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Neighbours:
        return cls(
            settings,
            arrays["vectors"].astype(np.float32),
            arrays["scores"].astype(np.float64),
            arrays["mean"].astype(np.float64),
        )

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"vectors": self.vectors, "scores": self.scores, "mean": self.mean}

    def predict(self, given: Given) -> Estimate:
        parts = [self._some(given.vectors[start : start + ROWS]) for start in range(0, len(given.vectors), ROWS)]
        if not parts:
            return Estimate(np.zeros((0, len(self.mean))), np.zeros((0, len(self.mean))))
        return Estimate(np.concatenate([part.p for part in parts]), np.concatenate([part.support for part in parts]))

    def sums(self, vectors: Vectors) -> tuple[Floats, Floats]:
        """(n, M) each: the weighted sum of the neighbours' scores, and of their weights."""
        near = vectors @ self.vectors.T
        k = min(self._k, near.shape[1])
        if k < near.shape[1]:
            nearest = np.argpartition(near, near.shape[1] - k, axis=1)[:, -k:]
            at = np.sort(nearest.astype(np.int64), axis=1)  # sums in one order, however the nearest were found
        else:
            at = np.repeat(np.arange(near.shape[1], dtype=np.int64)[None], len(near), axis=0)
        weights = np.clip(np.take_along_axis(near, at, axis=1), 0.0, 1.0).astype(np.float64) ** self._power
        right = np.einsum("nk,nkm->nm", weights, self._values[at])
        if self._complete:
            return right, np.repeat(weights.sum(axis=1)[:, None], right.shape[1], axis=1)
        return right, np.einsum("nk,nkm->nm", weights, self._seen[at].astype(np.float64))

    def _some(self, vectors: Vectors) -> Estimate:
        right, weight = self.sums(vectors)
        return Estimate((right + self.prior * self.mean) / (weight + self.prior), weight)
