"""`clusters`: k-means on the vectors; in each cluster each model's mean score, shrunk to its mean over all."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.encoders.vectors import Vectors, unit
from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings, mean_scores
from weaverant.routing.scores import Floats

ROUNDS = 20


class Clusters:
    """A query is of the cluster whose centre is nearest by cosine."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {"clusters": 30, "shrink": 10},
        *({"clusters": c, "shrink": s} for c in (15, 30, 60, 120) for s in (3, 10)),
    )

    def __init__(self, settings: Settings, centres: Vectors, right: Floats, graded: Floats, mean: Floats) -> None:
        self.prior = float(settings["shrink"])
        self._centres, self._right, self._graded, self._mean = centres, right, graded, mean

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Clusters:
        centres, of = k_means(given.vectors, int(settings["clusters"]), seed)
        seen = ~np.isnan(scores)
        right, graded = (np.zeros((len(centres), scores.shape[1])) for _ in range(2))
        np.add.at(right, of, np.where(seen, scores, 0.0))
        np.add.at(graded, of, seen.astype(np.float64))
        return cls(settings, centres, right, graded, mean_scores(scores))

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Clusters:
        right, graded, mean = (arrays[name].astype(np.float64) for name in ("right", "graded", "mean"))
        return cls(settings, arrays["centres"].astype(np.float32), right, graded, mean)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"centres": self._centres, "right": self._right, "graded": self._graded, "mean": self._mean}

    def predict(self, given: Given) -> Estimate:
        of = (given.vectors @ self._centres.T).argmax(axis=1)
        length = np.linalg.norm(given.vectors, axis=1)[:, None].astype(np.float64)  # of a text like none it is short
        right, support = self._right[of] * length, self._graded[of] * length
        return Estimate((right + self.prior * self._mean) / (support + self.prior), support)


def k_means(vectors: Vectors, count: int, seed: int) -> tuple[Vectors, NDArray[np.int64]]:
    """Spherical k-means (k-means++ seeds): at most `count` centres of length 1, and each vector's."""
    random = np.random.default_rng(seed)
    centres = [vectors[random.integers(len(vectors))]]
    far = np.clip(1.0 - vectors @ centres[0], 0.0, None).astype(np.float64)
    while len(centres) < min(count, len(vectors)) and far.sum() > 1e-9:
        centres.append(vectors[random.choice(len(vectors), p=far / far.sum())])
        far = np.minimum(far, np.clip(1.0 - vectors @ centres[-1], 0.0, None))
    found = np.stack(centres)
    of = np.full(len(vectors), -1, dtype=np.int64)
    for _ in range(ROUNDS):
        now = (vectors @ found.T).argmax(axis=1)
        if np.array_equal(now, of):
            break
        of = now
        member = (of[:, None] == np.arange(len(found))).astype(np.float32)
        sums = member.T @ vectors
        filled = np.linalg.norm(sums, axis=1) > 0
        found = np.where(filled[:, None], unit(sums), found).astype(np.float32)
    return found, of
