"""Means of outcomes: over queries, over each set, and over sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weaverant.routing.scores import Floats


class Means:
    """Weighted means of one value a query; a value of NaN is left out. All take weights (draws, N) and values (N,)."""

    def __init__(self, sets: Sequence[str]) -> None:
        names, code, sizes = np.unique(np.asarray(sets, dtype=str), return_inverse=True, return_counts=True)
        self.names: tuple[str, ...] = tuple(str(name) for name in names)
        """The sets, sorted."""
        self.sizes: tuple[int, ...] = tuple(int(size) for size in sizes)
        """Queries of each."""
        self._order = np.argsort(code, kind="stable")
        self._starts = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64)

    def whole(self, weights: Floats, values: Floats) -> Floats:
        """(draws,) over all queries: each set weighs as many as it has."""
        known = np.isfinite(values)
        return divided(weights @ np.where(known, values, 0.0), weights @ known.astype(np.float64))

    def per_set(self, weights: Floats, values: Floats) -> Floats:
        """(draws, sets); NaN where a set has no value."""
        known = np.isfinite(values)
        total = np.add.reduceat((weights * np.where(known, values, 0.0))[:, self._order], self._starts, axis=1)
        return divided(total, np.add.reduceat((weights * known)[:, self._order], self._starts, axis=1))

    def macro(self, weights: Floats, values: Floats) -> Floats:
        """(draws,) the mean over sets: each weighs the same, however many queries it has."""
        each = self.per_set(weights, values)
        known = np.isfinite(each)
        return divided(np.where(known, each, 0.0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def divided(total: Floats, count: Floats) -> Floats:
    """NaN where there is nothing to divide by."""
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
