"""Accuracy for money: the curve that the cost weight draws, and its area above what mixing blindly gives.

Any number of models. With cost weight w a query goes to the model of the greatest p - w * cost, the cost being what
is expected of the model. From w = infinity (always the cheapest) to w = 0 (always the likeliest) this draws a curve of
mean cost and mean score. Its area is taken as in RouteLLM (Ong et al., 2024, "APGR"), in dollars instead of calls:

    x = (cost - cost of the cheapest model) / (cost of the best single model - cost of the cheapest)
    y = (score - score of the cheapest)    / (score of the best single model - score of the cheapest)
    area = the integral of y(x) from 0 to 1, by the trapezoid rule on 101 budgets x

Where w = 0 costs less than the best single model, the curve goes on level: nobody has to spend more. Blind mixing, the
best single model for a random share of queries and the cheapest for the others, is y = x with an area of 0.5.

With two models there is also RouteLLM's own: x = the share of queries that go to the strong model, those first whose
p(strong) - p(weak) is greatest, until all do. Equal ones go together, so the curve is straight over them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.evaluation.accuracy import divided
from weaverant.routing.evaluation.choice import best, ranked, taken
from weaverant.routing.scores import Floats

STEPS = 200
"""Cost weights of a curve, at the quantiles of those at which a choice changes."""
BUDGETS = 101


@dataclass(frozen=True, eq=False)
class Curve:
    """Outcomes for each query (N) and each cost weight (L), from the cheapest choices to the likeliest."""

    weight: Floats
    """(L,) probability a dollar, falling; infinite at first, 0 at last."""
    score: Floats
    """(N, L)"""
    cost: Floats
    """(N, L) dollars."""


def swept(p: Floats, expected: Floats, score: Floats, cost: Floats, steps: int = STEPS) -> Curve:
    """`p`, `score`, `cost` are (N, M), `expected` (M,) the dollars an answer that choices are made by. A model that is
    not graded on a query is not chosen there."""
    graded = np.isfinite(score) & np.isfinite(cost)
    levels = _levels(p, expected, steps)
    places = [ranked(np.where(graded, p - weight * expected, 0.0), graded, expected)[:, 0] for weight in levels[1:]]
    places = [ranked(np.broadcast_to(-expected, p.shape), graded, expected)[:, 0], *places]
    return Curve(
        levels,
        np.stack([taken(score, place) for place in places], axis=1),
        np.stack([taken(cost, place) for place in places], axis=1),
    )


def _levels(p: Floats, expected: Floats, steps: int) -> Floats:
    """Infinity, weights between the crossings of any two models' utilities, 0."""
    crossings: list[Floats] = []
    for a in range(len(expected)):
        for b in range(len(expected)):
            if expected[a] > expected[b]:
                at = (p[:, a] - p[:, b]) / (expected[a] - expected[b])
                crossings.append(at[at > 0])
    found = np.unique(np.concatenate([np.zeros(0), *crossings]))
    if len(found) > steps:
        found = np.unique(np.quantile(found, np.linspace(0, 1, steps)))
    between = (found[1:] + found[:-1]) / 2
    return np.concatenate(([np.inf], between[::-1], [0.0]))


@dataclass(frozen=True, eq=False)
class Area:
    """A statistic over draws of queries (N): see the module's text for the definition."""

    curve: Curve
    cheap: tuple[Floats, Floats]
    """(N,) scores and dollars of the cheapest model."""
    single: tuple[Floats, Floats]
    """The same of the best single model."""
    rows: NDArray[np.intp]
    """The queries on which all of it is known."""

    def __call__(self, weights: Floats) -> Floats:
        """(draws, 2): the area, and the mean over budgets of the score above blind mixing (no division by the gap)."""
        weights = weights[:, self.rows]
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        x, y = weights @ self.curve.cost[self.rows] / total, weights @ self.curve.score[self.rows] / total
        ends = np.stack([*self.cheap, *self.single], axis=1)[self.rows]
        score_low, cost_low, score_high, cost_high = (weights @ ends / total).T
        share, gap = np.linspace(0, 1, BUDGETS), score_high - score_low
        found = np.full((len(weights), 2), np.nan)
        for row in range(len(weights)):
            if not cost_high[row] > cost_low[row]:  # the best single model is the cheapest: there is nothing to trade
                continue
            order = np.argsort(x[row], kind="stable")
            budget = cost_low[row] + share * (cost_high[row] - cost_low[row])
            score = np.asarray(np.interp(budget, x[row][order], y[row][order]), dtype=np.float64)
            above = float(integral(score - score_low[row] - share * gap[row], share))
            found[row] = (0.5 + above / gap[row] if gap[row] > 0 else np.nan, above)
        return found


def area_of(curve: Curve, score: Floats, cost: Floats, expected: Floats, single: int) -> Area | None:
    """Against the models of a table, on the queries on which both ends are graded. None where the best single model is
    the cheapest."""
    cheap = best(-expected)
    if cheap == single:
        return None
    low, high = ((score[:, end], cost[:, end]) for end in (cheap, single))
    rows = np.flatnonzero(np.isfinite(np.stack([*low, *high], axis=1)).all(axis=1))
    return Area(curve, low, high, rows) if len(rows) else None


@dataclass(frozen=True, eq=False)
class CallShare:
    """RouteLLM's APGR and CPT for two models, as a statistic over draws of queries."""

    ahead: Floats
    """(N,) p(strong) - p(weak)."""
    strong: Floats
    """(N,) scores."""
    weak: Floats

    def __call__(self, weights: Floats) -> Floats:
        """(draws, 3): APGR (blind mixing: 0.5), and the shares of strong calls that recover half and four fifths of
        the gap (CPT 50 % and 80 %)."""
        order = np.argsort(-self.ahead, kind="stable")
        ends = np.flatnonzero(np.diff(self.ahead[order], append=np.nan) != 0)
        drawn = weights[:, order]
        x = np.cumsum(drawn, axis=1)[:, ends]
        y = np.cumsum(drawn * (self.strong - self.weak)[order], axis=1)[:, ends]
        first = np.zeros((len(weights), 1))
        x = np.concatenate([first, x / x[:, -1:]], axis=1)
        y = np.concatenate([first, divided(y, np.where(y[:, -1:] > 0, y[:, -1:], 0.0).repeat(y.shape[1], 1))], axis=1)
        return np.stack([integral(y, x), _reached(x, y, 0.5), _reached(x, y, 0.8)], axis=1)


def integral(y: Floats, x: Floats) -> Floats:
    """By the trapezoid rule, over the last axis."""
    return ((y[..., 1:] + y[..., :-1]) / 2 * np.diff(x)).sum(axis=-1)


def _reached(x: Floats, y: Floats, level: float) -> Floats:
    """(draws,) the smallest x at which y is at that level, between points by straight lines."""
    at: NDArray[np.intp] = np.argmax(y >= level, axis=1)
    rows = np.arange(len(x))
    before = np.maximum(at - 1, 0)
    rise = y[rows, at] - y[rows, before]
    share = divided(level - y[rows, before], rise)
    return np.where(y.max(axis=1) >= level, x[rows, before] + share * (x[rows, at] - x[rows, before]), np.nan)
