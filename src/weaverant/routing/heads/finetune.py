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
from weaverant.routing.heads.contrastive import Mates
from weaverant.routing.heads.head import Arrays, Estimate, Given, Settings
from weaverant.routing.heads.likely import SPREAD, Likely, clustered
from weaverant.routing.heads.losses import sides
from weaverant.routing.scores import Floats
from weaverant.routing.transformer import Transformer, router_dc


class Finetune:
    """What is learned: the encoder's weights, and what makes chances of it."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {"steps": 1000, "batch": 16, "rate": 5e-5, "temperature": 1, "positives": 3, "negatives": 3, "others": 3,
         "weight": 1, "clusters": 8},
    )  # fmt: skip
    prior = 1.0

    def __init__(self, encoder: Transformer, folder: str, likely: Likely) -> None:
        self._encoder, self._folder, self._likely = encoder, folder, likely
        self._lock = Lock()

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Finetune:
        encoder, random = Transformer(folder_of(given)), np.random.default_rng(seed)
        clusters = clustered(given.vectors, scores, int(settings["clusters"]), seed)
        above, below = sides(scores, int(settings["positives"]), int(settings["negatives"]))
        mates, weight = Mates(clusters.of, int(settings["others"])), float(settings["weight"])

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
        rows = encoder.encode(given.texts).astype(np.float64)
        return cls(encoder, folder_of(given), Likely.fit(rows, models, scores, clusters, settings))

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Finetune:
        folder = str(arrays["folder"])
        weights = {name.removeprefix(_WEIGHT): each for name, each in arrays.items() if name.startswith(_WEIGHT)}
        return cls(Transformer(folder, weights), folder, Likely.load(settings, arrays))

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        weights = {_WEIGHT + name: each for name, each in self._encoder.weights().items()}
        return {**weights, "folder": np.array(self._folder), **self._likely.arrays()}

    def predict(self, given: Given) -> Estimate:
        with self._lock:
            vectors = self._encoder.encode(given.texts)
        return self._likely.estimate(vectors.astype(np.float64), given.vectors)


_WEIGHT = "weight "


def folder_of(given: Given) -> str:
    """Of the checkpoint that made the vectors. `UserError` where another encoder did."""
    if not given.folder:
        raise UserError("the head finetune trains an encoder of yours: add --encoder checkpoint:FOLDER")
    return given.folder
