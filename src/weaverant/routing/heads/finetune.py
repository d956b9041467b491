"""`finetune`: RouterDC with its encoder trained, as in the paper (arXiv 2409.19886): mDeBERTa-v3-base from a folder.

Wants `--encoder checkpoint:FOLDER`. Clusters come from the encoder's vectors before training. What was trained, the
whole encoder, is kept in the router's folder; tokenizer and shape stay in the checkpoint's. There is one training for
each fold that is held out and one for the router: without a GPU that is for small encoders.
"""

from __future__ import annotations

from threading import Lock
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.heads.clusters import k_means
from weaverant.routing.heads.contrastive import SPREAD, Mates
from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings
from weaverant.routing.heads.losses import cosines, sides
from weaverant.routing.scores import Floats
from weaverant.routing.transformer import Transformer, router_dc


class Finetune:
    """What is learned: the encoder's weights, a vector of each model, and the clusters with their grades."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {"steps": 1000, "batch": 16, "rate": 5e-5, "temperature": 1, "positives": 3, "negatives": 3, "others": 3,
         "weight": 1, "clusters": 8},
    )  # fmt: skip
    prior = 1.0

    def __init__(
        self, settings: Settings, encoder: Transformer, folder: str, models: Floats, centres: Vectors, graded: Floats
    ) -> None:
        self._temperature = float(settings["temperature"])
        self._encoder, self._folder, self._models = encoder, folder, models
        self._centres, self._graded = centres, graded
        self._lock = Lock()

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Finetune:
        encoder, random = Transformer(folder_of(given)), np.random.default_rng(seed)
        centres, cluster = k_means(given.vectors, int(settings["clusters"]), seed)
        graded = np.zeros((len(centres), scores.shape[1]))
        np.add.at(graded, cluster, (~np.isnan(scores)).astype(np.float64))
        above, below = sides(scores, int(settings["positives"]), int(settings["negatives"]))
        mates, weight = Mates(cluster, int(settings["others"])), float(settings["weight"])

        def loss(rows: NDArray[np.int64], texts: Any, models: Any) -> Any:
            x = texts / texts.norm(dim=1, keepdim=True)
            z = x @ (models / models.norm(dim=1, keepdim=True)).T / float(settings["temperature"])
            alike = x @ x.T
            own, near, far = mates.of(rows, random)
            return router_dc(z, above[rows], below[rows], alike[own, near], alike[own[:, None], far], weight)

        size = min(int(settings["batch"]), len(scores))
        batches = [random.choice(len(scores), size, replace=False) for _ in range(int(settings["steps"]))]
        models = random.normal(0.0, SPREAD, (scores.shape[1], encoder.dims))
        models = encoder.tune(given.texts, models, batches, float(settings["rate"]), loss, seed)
        return cls(settings, encoder, folder_of(given), models, centres, graded)

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Finetune:
        folder = str(arrays["folder"])
        weights = {name.removeprefix(_WEIGHT): each for name, each in arrays.items() if name.startswith(_WEIGHT)}
        models, graded = (arrays[name].astype(np.float64) for name in ("models", "graded"))
        encoder = Transformer(folder, weights)
        return cls(settings, encoder, folder, models, arrays["centres"].astype(np.float32), graded)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        weights = {_WEIGHT + name: each for name, each in self._encoder.weights().items()}
        found = {"folder": np.array(self._folder), "models": self._models, "graded": self._graded}
        return {**weights, **found, "centres": self._centres}

    def predict(self, given: Given) -> Estimate:
        with self._lock:
            vectors = self._encoder.encode(given.texts)
        z = cosines(vectors.astype(np.float64), self._models) / self._temperature
        return Estimate(1.0 / (1.0 + np.exp(-z)), self._graded[(given.vectors @ self._centres.T).argmax(axis=1)])


_WEIGHT = "weight "


def folder_of(given: Given) -> str:
    """Of the checkpoint that made the vectors. `UserError` where another encoder did."""
    if not given.folder:
        raise UserError("the head finetune trains an encoder of yours: add --encoder checkpoint:FOLDER")
    return given.folder
