"""`blend`: the mean of several heads. Where each errs in its own way, the mean errs less than any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.heads import AUTO, head_kind
from weaverant.routing.heads.head import Arrays, Estimate, Given, Head, Settings
from weaverant.routing.scores import Floats


class Blend:
    """Settings are those of its parts, as `knn.k`; which parts there are, they say."""

    GRID: ClassVar[tuple[Settings, ...]] = (
        {f"{kind}.{name}": value for kind in AUTO for name, value in head_kind(kind).GRID[0].items()},
    )

    def __init__(self, parts: Mapping[str, Head]) -> None:
        self._parts = dict(parts)
        self.prior = float(np.mean([part.prior for part in parts.values()]))

    @classmethod
    def fit(cls, given: Given, scores: Floats, settings: Settings, seed: int) -> Blend:
        of = parted(settings)
        return cls({kind: head_kind(kind).fit(given, scores, own, seed) for kind, own in of.items()})

    @classmethod
    def load(cls, settings: Settings, arrays: Arrays) -> Blend:
        of = parted(settings)
        return cls({kind: head_kind(kind).load(own, _own(arrays, kind)) for kind, own in of.items()})

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        parts = self._parts.items()
        return {f"{kind}.{name}": array for kind, part in parts for name, array in part.arrays().items()}

    def predict(self, given: Given) -> Estimate:
        found = [part.predict(given) for part in self._parts.values()]
        return Estimate(
            np.mean([each.p for each in found], axis=0).astype(np.float64),
            np.mean([each.support for each in found], axis=0).astype(np.float64),
        )


def parted(settings: Settings) -> dict[str, dict[str, float]]:
    """The settings of each part, in the order of their kinds' names."""
    found: dict[str, dict[str, float]] = {}
    for name, value in sorted(settings.items()):
        kind, _, own = name.partition(".")
        found.setdefault(kind, {})[own] = value
    return found


def joined(parts: Mapping[str, Settings]) -> dict[str, float]:
    """The settings of a blend of these."""
    return {f"{kind}.{name}": value for kind, own in sorted(parts.items()) for name, value in own.items()}


def _own(arrays: Arrays, kind: str) -> Arrays:
    return {name[len(kind) + 1 :]: array for name, array in arrays.items() if name.startswith(f"{kind}.")}
