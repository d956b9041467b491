"""What RouterDC's heads have in common: from cosines with the models' vectors to chances, with clusters as support."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.calibration import fit_platt
from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.heads.clusters import k_means
from weaverant.routing.heads.head import Arrays, Estimate, Settings
from weaverant.routing.heads.losses import cosines
from weaverant.routing.scores import Floats

SPREAD = 0.78
"""Standard deviation of a model's vector before training."""


class Clustered(NamedTuple):
    """Queries by the cluster that they are of."""

    centres: Vectors
    """(clusters, dims)"""
    of: NDArray[np.int64]
    """(n,)"""
    graded: Floats
    """(clusters, M) How many graded answers of each model are in it."""


def clustered(vectors: Vectors, scores: Floats, count: int, seed: int) -> Clustered:
    centres, of = k_means(vectors, count, seed)
    graded = np.zeros((len(centres), scores.shape[1]))
    np.add.at(graded, of, (~np.isnan(scores)).astype(np.float64))
    return Clustered(centres, of, graded)


class Likely(NamedTuple):
    """A cosine tells who is better, and not how often anybody is right: two numbers for each model do."""

    temperature: float
    models: Floats
    """(M, width)"""
    lines: Floats
    """(2, M) Slope and shift: a model is right with the chance sigmoid(slope * z + shift)."""
    centres: Vectors
    graded: Floats

    @classmethod
    def fit(cls, rows: Floats, models: Floats, scores: Floats, clusters: Clustered, settings: Settings) -> Likely:
        """`rows` are the queries as they are compared with the models, (n, width); the likeliest lines are taken."""
        temperature = float(settings["temperature"])
        z, lines = cosines(rows, models) / temperature, np.tile([[1.0], [0.0]], len(models))
        for model in range(len(models)):
            seen = ~np.isnan(scores[:, model])
            fitted = fit_platt(_sigmoid(z[seen, model]), scores[seen, model])
            lines[:, model] = fitted.slope, fitted.shift
        return cls(temperature, models, lines, clusters.centres, clusters.graded)

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Likely:
        models, lines, graded = (arrays[name].astype(np.float64) for name in ("models", "lines", "graded"))
        return cls(float(settings["temperature"]), models, lines, arrays["centres"].astype(np.float32), graded)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"models": self.models, "lines": self.lines, "centres": self.centres, "graded": self.graded}

    def estimate(self, rows: Floats, vectors: Vectors) -> Estimate:
        """`vectors` are those of the encoder, by which a query is of a cluster."""
        z = cosines(rows, self.models) / self.temperature
        slope, shift = self.lines
        return Estimate(_sigmoid(slope * z + shift), self.graded[(vectors @ self.centres.T).argmax(axis=1)])


def _sigmoid(value: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-value))
