"""What feedback adds to a router while it is used, whatever its head is.

Each outcome is kept with the estimate that was given for it. What estimates were off by, over all queries and more so
over those that are near, is added to the next ones; old outcomes fade, so that a model that changed is known as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from weaverant.message import digest
from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.scores import Floats
from weaverant.routing.table import normal

CAPACITY = 4_096
"""Outcomes kept; the oldest go first."""
HALF_LIFE = 1_000.0
"""Outcomes after which one counts half."""
SHRINK_ALL, SHRINK_NEAR = 20.0, 5.0
"""Outcomes that an error of nought counts as: over all queries, and near one."""


class Change(NamedTuple):
    """(M,) each."""

    p: Floats
    """To be added."""
    support: Floats
    """How many outcomes that rests on, weighted by how near and how new they are."""


class Online:
    """Not thread-safe: its router's lock is held."""

    def __init__(self, models: int, dims: int, capacity: int = CAPACITY, half_life: float = HALF_LIFE) -> None:
        self._half_life, self._models = half_life, models
        self._vectors = np.zeros((capacity, dims), dtype=np.float32)
        self._model = np.zeros(capacity, dtype=np.int64)
        self._off = np.zeros(capacity)
        self._weight = np.zeros(capacity)
        self._raw = np.full(capacity, np.nan)
        self._query = np.zeros(capacity, dtype=np.int64)
        self._count = 0

    @classmethod
    def load(cls, models: int, dims: int, arrays: Mapping[str, NDArray[np.generic]]) -> Online:
        found = cls(models, dims, len(arrays["model"]))
        found._vectors = arrays["vectors"].astype(np.float32)
        found._model = arrays["model"].astype(np.int64)
        found._off, found._weight = arrays["off"].astype(np.float64), arrays["weight"].astype(np.float64)
        found._raw = arrays.get("raw", found._raw).astype(np.float64)
        found._query = arrays.get("query", found._query).astype(np.int64)
        found._count, found._half_life = int(arrays["count"][0]), float(arrays["half_life"][0])
        return found

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "vectors": self._vectors,
            "model": self._model,
            "off": self._off,
            "weight": self._weight,
            "raw": self._raw,
            "query": self._query,
            "count": np.array([self._count]),
            "half_life": np.array([self._half_life]),
        }

    @property
    def count(self) -> int:
        """Outcomes ever given."""
        return self._count

    def add(
        self, vector: Vectors, model: int, off: float, weight: float, raw: float = float("nan"), text: str = ""
    ) -> None:
        """`off`: the outcome less the estimate without any feedback; `raw`: that estimate before calibration; `text`:
        the query's."""
        at = self._count % len(self._model)
        self._vectors[at], self._model[at], self._off[at], self._weight[at] = vector, model, off, weight
        self._raw[at], self._query[at] = raw, _mark(text)
        self._count += 1

    def rebased(self, more: Callable[[int, Floats], Floats]) -> Online:
        """As it would be with other estimates: by how much they are less, by model and estimate before calibration."""
        found = Online.load(self._models, self._vectors.shape[1], self.arrays())
        n = min(self._count, len(self._model))
        for model in range(self._models):
            at = np.flatnonzero((self._model[:n] == model) & ~np.isnan(self._raw[:n]))
            found._off[at] += more(model, self._raw[at])
        return found

    def heard(self, texts: Iterable[str]) -> list[bool]:
        """Of which of these queries there is an outcome among those kept."""
        marks = set(self._query[: min(self._count, len(self._query))].tolist())
        return [_mark(text) in marks for text in texts]

    def change(self, vector: Vectors) -> Change:
        """What feedback says about a query."""
        n = min(self._count, len(self._model))
        age = (self._count - 1 - np.arange(n)) % len(self._model)
        weight = self._weight[:n] * 0.5 ** (age / self._half_life)
        of, off = self._model[:n], self._off[:n]
        whole = self._sum(of, weight)
        over_all = self._sum(of, weight * off) / (whole + SHRINK_ALL)
        near = weight * np.clip(2.0 * (self._vectors[:n] @ vector) - 1.0, 0.0, 1.0)
        beside = self._sum(of, near)
        local = self._sum(of, near * (off - over_all[of])) / (beside + SHRINK_NEAR)
        return Change(over_all + local, beside)

    def _sum(self, of: NDArray[np.int64], values: Floats) -> Floats:
        return np.bincount(of, weights=values, minlength=self._models).astype(np.float64)


def _mark(text: str) -> int:
    """By which a query is known again."""
    return int.from_bytes(digest(normal(text).encode("utf-8", "surrogatepass"))[:8], "little", signed=True)
