"""`contrastive`: RouterDC's dual-contrastive head (arXiv 2409.19886) on the vectors of any encoder.

A query's vector goes through one matrix; a model is a vector of the same length; its similarity is their cosine. Both
are trained with RouterDC's two losses. Two numbers for each model then make a chance of being right of its cosine, so
that here, other than there, a model whose cosine is lower may be the likelier one.

As there: the three highest and the three lowest models of a query, three queries of other clusters, temperature 1,
vectors of models drawn from N(0, 0.78^2). Otherwise: the encoder stays as it is and the matrix is trained in its place
(`finetune` trains the encoder), clusters are k-means of the vectors and not of a t-SNE of them, sets are not cut to
1,000 queries each, and the last step is kept and not the best one by training accuracy.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings
from weaverant.routing.heads.likely import SPREAD, Likely, clustered
from weaverant.routing.heads.losses import cosine_slopes, cosines, sample_llm, sample_sample, sides
from weaverant.routing.scores import Floats

BATCH = 64
DECAYS = 0.9, 0.999
"""Of Adam's two means."""


class Contrastive:
    """What is learned: a matrix (dims, width), and what makes chances of it."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {"width": 96, "steps": 1000, "rate": 0.003, "temperature": 1, "positives": 3, "negatives": 3, "others": 3,
         "weight": 1, "clusters": 8},
        {"temperature": 0.3},
        {"steps": 300},
    )  # fmt: skip
    prior = 1.0

    def __init__(self, matrix: Floats, likely: Likely) -> None:
        self._matrix, self._likely = matrix, likely

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Contrastive:
        random = np.random.default_rng(seed)
        x, width, models = given.vectors.astype(np.float64), int(settings["width"]), scores.shape[1]
        clusters = clustered(given.vectors, scores, int(settings["clusters"]), seed)
        trained = _Trained(
            [random.normal(0.0, x.shape[1] ** -0.5, (x.shape[1], width)), random.normal(0.0, SPREAD, (models, width))],
            float(settings["rate"]),
        )
        above, below = sides(scores, int(settings["positives"]), int(settings["negatives"]))
        mates, steps = Mates(clusters.of, int(settings["others"])), int(settings["steps"])
        for step in range(steps):
            rows = random.choice(len(x), min(BATCH, len(x)), replace=False)
            slopes = _slopes(x[rows], trained.values, above[rows], below[rows], mates.of(rows, random), settings)
            trained.step(slopes, 1.0 - step / steps)
        matrix, vectors = trained.values
        return cls(matrix, Likely.fit(x @ matrix, vectors, scores, clusters, settings))

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Contrastive:
        return cls(arrays["matrix"].astype(np.float64), Likely.load(settings, arrays))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"matrix": self._matrix, **self._likely.arrays()}

    def predict(self, given: Given) -> Estimate:
        return self._likely.estimate(given.vectors.astype(np.float64) @ self._matrix, given.vectors)


class Mates:
    """For each query of a batch one of its cluster and some of others, all of that batch."""

    def __init__(self, cluster: NDArray[np.int64], others: int) -> None:
        self._cluster, self._others = cluster, others

    def of(
        self, rows: NDArray[np.int64], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Places in the batch: whose (n,), the mates (n,) and the others (n, H), for those queries that have others."""
        cluster = self._cluster[rows]
        own, mates, far = list[int](), list[int](), list[list[int]]()
        for place, of in enumerate(cluster.tolist()):
            apart = np.flatnonzero(cluster != of)
            if len(apart):
                own.append(place)
                mates.append(int(random.choice(np.flatnonzero(cluster == of))))
                far.append(random.choice(apart, self._others).tolist())
        shape = (len(own), self._others)
        return np.array(own, np.int64), np.array(mates, np.int64), np.array(far, np.int64).reshape(shape)


def _slopes(
    x: Floats,
    values: list[Floats],
    above: NDArray[np.bool_],
    below: NDArray[np.bool_],
    mates: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
    settings: Settings,
) -> list[Floats]:
    """Of the mean loss of a batch, by the matrix and the models' vectors."""
    matrix, models = values
    temperature, weight, count = float(settings["temperature"]), float(settings["weight"]), len(x)
    h = x @ matrix
    _, by_z = sample_llm(cosines(h, models) / temperature, above, below)
    by_h, by_models = cosine_slopes(h, models, by_z / (temperature * count))
    own, near, far = mates
    if len(own) and weight:
        alike = cosines(h, h)
        _, by_near, by_far = sample_sample(alike[own, near], alike[own[:, None], far])
        by_pair = np.zeros((count, count))
        np.add.at(by_pair, (own, near), by_near)
        np.add.at(by_pair, (np.broadcast_to(own[:, None], far.shape), far), by_far)
        left, right = cosine_slopes(h, h, weight * by_pair / len(own))
        by_h = by_h + left + right
    return [x.T @ by_h, by_models]


class _Trained:
    """Adam (arXiv 1412.6980), the rate falling in a straight line."""

    def __init__(self, values: list[Floats], rate: float) -> None:
        self.values, self._rate, self._taken = values, rate, 0
        self._mean = [np.zeros_like(each) for each in values]
        self._square = [np.zeros_like(each) for each in values]

    def step(self, slopes: list[Floats], share: float) -> None:
        self._taken += 1
        first, second = DECAYS
        for n, slope in enumerate(slopes):
            self._mean[n] = first * self._mean[n] + (1 - first) * slope
            self._square[n] = second * self._square[n] + (1 - second) * slope * slope
            mean, square = self._mean[n] / (1 - first**self._taken), self._square[n] / (1 - second**self._taken)
            self.values[n] = self.values[n] - share * self._rate * mean / (np.sqrt(square) + 1e-8)
