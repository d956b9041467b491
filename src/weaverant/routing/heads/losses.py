"""RouterDC's two losses (arXiv 2409.19886, sections 3.2 and 3.3) and their slopes.

`z` are similarities over the temperature: cosines of a query with each model, of shape (n, M). All losses are one
number a query; whoever trains takes their mean.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.scores import Floats

WRONG = 0.5
"""A model with a higher score is no negative."""

Mask = NDArray[np.bool_]


def sides(scores: Floats, positives: int, negatives: int) -> tuple[Mask, Mask]:
    """(n, M) each: the `positives` highest scores of a query, if they are above 0, and the `negatives` lowest, if they
    are not above a half. Equal scores go by the model's place; NaN is neither."""
    seen = ~np.isnan(scores)
    high = np.argsort(np.where(seen, -scores, np.inf), axis=1, kind="stable")[:, :positives]
    low = np.argsort(np.where(seen, scores, np.inf), axis=1, kind="stable")[:, :negatives]
    above, below = np.zeros(scores.shape, dtype=bool), np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(above, high, True, axis=1)
    np.put_along_axis(below, low, True, axis=1)
    known = np.where(seen, scores, WRONG)
    return above & seen & (known > 0), below & seen & (known <= WRONG)


def sample_llm(z: Floats, above: Mask, below: Mask) -> tuple[Floats, Floats]:
    """Draws a query to each model that is good at it, away from those that are bad at it: the sum over the good ones i
    of -log(e^z_i / (e^z_i + sum over the bad j of e^z_j)). (n,) losses, and (n, M) slopes by z."""
    e = np.exp(z)
    bad = (e * below).sum(axis=1, keepdims=True)
    share = e / (e + bad)
    losses = -(np.log(share) * above).sum(axis=1)
    slopes = above * (share - 1.0) + below * e * (above / (e + bad)).sum(axis=1, keepdims=True)
    return losses, slopes


def sample_sample(near: Floats, far: Floats) -> tuple[Floats, Floats, Floats]:
    """Draws a query to one of its own cluster, with the similarity `near` (n,), away from H of others, `far` (n, H):
    -log(e^near / (e^near + sum of e^far)). (n,) losses, and the slopes by both."""
    e, others = np.exp(near), np.exp(far)
    total = e + others.sum(axis=1)
    return np.log(total / e), e / total - 1.0, others / total[:, None]


def cosines(left: Floats, right: Floats) -> Floats:
    """(n, M) of n and M rows."""
    return unit(left) @ unit(right).T


def cosine_slopes(left: Floats, right: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    """From slopes by the cosines of all pairs (n, M): those by the rows of both sides."""
    a, b = unit(left), unit(right)
    by_a, by_b = slopes @ b, slopes.T @ a
    return _through(left, a, by_a), _through(right, b, by_b)


def unit(rows: Floats) -> Floats:
    return rows / _lengths(rows)


def _through(rows: Floats, units: Floats, slopes: Floats) -> Floats:
    """Through the division by the length."""
    return (slopes - units * (units * slopes).sum(axis=1, keepdims=True)) / _lengths(rows)


def _lengths(rows: Floats) -> Floats:
    return np.maximum(np.sqrt((rows * rows).sum(axis=1, keepdims=True)), 1e-12)
