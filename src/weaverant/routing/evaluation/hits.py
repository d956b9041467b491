"""Hit rates: whether a good model is among the first k of a ranking. Two readings of `hit`, as the field has two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.evaluation.choice import Places
from weaverant.routing.scores import Floats

RIGHT = 0.5
"""A graded answer counts as right from this score on."""


def tied(scores: Floats, ranking: Places, k: int) -> Floats:
    """(N,) 1.0 where one of the first k scores as much as the best of all models; where all are wrong, that is any."""
    first = np.take_along_axis(scores, ranking[:, :k], axis=1)
    return np.where(_told(scores), (_top(first) >= _top(scores)).astype(np.float64), np.nan)


def right(scores: Floats, ranking: Places, k: int) -> Floats:
    """(N,) 1.0 where one of the first k is right. Its ceiling is the share of queries that any model gets right."""
    first = np.take_along_axis(scores, ranking[:, :k], axis=1)
    return np.where(_told(scores), (_top(first) >= RIGHT).astype(np.float64), np.nan)


def ceiling(scores: Floats) -> Floats:
    """(N,) 1.0 where any model is right."""
    return np.where(_told(scores), (_top(scores) >= RIGHT).astype(np.float64), np.nan)


def _top(scores: Floats) -> Floats:
    top: Floats = np.max(np.where(np.isfinite(scores), scores, -1.0), axis=1)
    return top


def _told(scores: Floats) -> NDArray[np.bool_]:
    told: NDArray[np.bool_] = np.any(np.isfinite(scores), axis=1)
    return told
