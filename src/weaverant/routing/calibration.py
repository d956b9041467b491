"""From estimates to probabilities: per model a map that held-out grades fix, and how far off what remains is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from weaverant.routing.scores import Floats

EDGE = 1e-3
"""No probability is nearer to 0 or 1: grades by the thousand could not tell."""
FEWEST = 20
"""Grades of a model below which its estimates stay as they are."""
BINS = 15
STEPS = 30


class Map(Struct, frozen=True):
    """What becomes of one model's estimates."""

    kind: str = "none"
    """`none`; `platt`: sigmoid(slope * logit(p) + shift); `isotonic`: rising, straight between its knots."""
    slope: float = 1.0
    shift: float = 0.0
    at: tuple[float, ...] = ()
    to: tuple[float, ...] = ()

    def __call__(self, p: Floats) -> Floats:
        if self.kind == "platt":
            found = _sigmoid(self.slope * _logit(p) + self.shift)
        elif self.kind == "isotonic":
            found = np.interp(p, self.at, self.to)
        else:
            found = p
        return np.clip(found, EDGE, 1.0 - EDGE)


def fit_platt(p: Floats, y: Floats) -> Map:
    """Maximum likelihood of two numbers, drawn a little to those that change nothing."""
    x = np.stack([_logit(p), np.ones(len(p))], axis=1)
    start = np.array([1.0, 0.0])
    found = start.copy()
    for _ in range(STEPS):
        now = _sigmoid(x @ found)
        slope = x.T @ (now - y) + (found - start)
        step = np.linalg.solve((x * (now * (1 - now))[:, None]).T @ x + np.eye(2), slope)
        found = found - np.clip(step, -1.0, 1.0)
        if float(np.abs(step).max()) < 1e-8:
            break
    return Map("platt", slope=max(0.0, float(found[0])), shift=float(found[1]))


def fit_isotonic(p: Floats, y: Floats) -> Map:
    """The rising function of least squares, at the mean estimate of each of its levels."""
    order = np.argsort(p, kind="stable")
    levels, weights = pooled(y[order])
    ends = np.cumsum(weights.astype(np.int64))
    at = [float(part.mean()) for part in np.split(p[order], ends[:-1])]
    whole = float(y.mean())
    to = (levels * weights + whole) / (weights + 1.0)  # a level of one grade is no certainty
    return Map("isotonic", at=tuple(at), to=tuple(float(each) for each in np.maximum.accumulate(to)))


def pooled(y: Floats) -> tuple[Floats, Floats]:
    """The levels of the rising sequence that is nearest to `y` by least squares, and how many values each is of: pool
    adjacent violators (Ayer et al. 1955)."""
    sums: list[float] = []
    counts: list[int] = []
    for value in y.tolist():
        sums.append(value)
        counts.append(1)
        while len(sums) > 1 and sums[-2] * counts[-1] >= sums[-1] * counts[-2]:
            more, number = sums.pop(), counts.pop()
            sums[-1] += more
            counts[-1] += number
    return np.array(sums) / np.array(counts), np.array(counts, dtype=np.float64)


def choose_maps(p: Floats, y: Floats, folds: Sequence[NDArray[np.int64]]) -> tuple[list[Map], Floats]:
    """For each model the kind of map that errs least on folds that it was not fitted on, fitted on all of them; and the
    estimates (N, M) under maps of that kind which had not seen them."""
    maps: list[Map] = []
    held = np.clip(p, EDGE, 1.0 - EDGE)
    for model in range(p.shape[1]):
        seen = np.flatnonzero(~np.isnan(y[:, model]))
        best, least = Map(), _error(held[seen, model], y[seen, model])
        for fit in (fit_platt, fit_isotonic):
            if len(seen) < FEWEST:
                break
            tried = p[:, model].copy()
            for fold in folds:
                others = np.setdiff1d(seen, fold)
                tried[fold] = fit(p[others, model], y[others, model])(p[fold, model])
            error = _error(tried[seen], y[seen, model])
            if error < least:
                best, least = fit(p[seen, model], y[seen, model]), error
                held[:, model] = tried
        maps.append(best)
    return maps, held


def applied(maps: Sequence[Map], p: Floats) -> Floats:
    return np.stack([each(p[:, model]) for model, each in enumerate(maps)], axis=1)


def calibration_error(p: Floats, y: Floats, bins: int = BINS) -> float:
    """The expected calibration error: over equal parts of [0, 1] in which estimates fall, the distance between their
    mean and the mean score, weighted by how many there are. Of any shape; NaN scores do not count."""
    seen = ~np.isnan(y)
    p, y = p[seen], y[seen]
    part = np.minimum((p * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(part, weights=p - y, minlength=bins)).sum() / max(1, len(p)))


def _error(p: Floats, y: Floats) -> float:
    return float(((p - y) ** 2).mean()) if len(p) else 0.0


def _logit(p: Floats) -> Floats:
    kept = np.clip(p, EDGE, 1.0 - EDGE)
    return np.log(kept / (1.0 - kept))


def _sigmoid(value: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(value, -30.0, 30.0)))
