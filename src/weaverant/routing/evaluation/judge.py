"""One `Evaluation` of a router's scores on a table."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from weaverant.errors import UserError
from weaverant.routing.evaluation import hits
from weaverant.routing.evaluation.accuracy import Means
from weaverant.routing.evaluation.calibration import BINS, Calibration, calibrated
from weaverant.routing.evaluation.choice import Prior, aligned, best, constant, ranked, taken
from weaverant.routing.evaluation.cost import CallShare, area_of, swept
from weaverant.routing.evaluation.resample import DRAWS, Interval, Statistic, spread, weights
from weaverant.routing.scores import Floats, Scores
from weaverant.routing.table import Table

ROUTER, SINGLE, HERE, RANDOM, ORACLE = "router", "best single", "best single here", "random", "oracle"


class Line(msgspec.Struct, frozen=True):
    """A way to choose. `accuracy` is the mean over queries, `macro` the mean over sets, `gain` what it is ahead of the
    best single model on the queries on which both are known."""

    name: str
    model: str | None
    accuracy: Interval
    macro: Interval
    gain: Interval
    gain_macro: Interval
    cost: float | None
    """Dollars a query."""


class SetLine(msgspec.Struct, frozen=True):
    """A set of the table."""

    name: str
    queries: int
    router: Interval
    single: Interval
    gain: Interval
    oracle: float


class Hits(msgspec.Struct, frozen=True):
    """Hit rates of the first `k`; `kind` is `tied` or `right`, `constant` is one ranking for all queries."""

    kind: str
    k: int
    router: Interval
    constant: Interval
    ahead: Interval
    ceiling: float


class Point(msgspec.Struct, frozen=True):
    """Dollars a query, and the mean score."""

    cost: float
    score: float


class Priced(msgspec.Struct, frozen=True):
    """Accuracy for money; `cost` has the definitions."""

    curve: tuple[Point, ...]
    models: dict[str, Point]
    cheapest: str
    single: str
    area: Interval | None
    """0.5: blind mixing. None where the best single model is the cheapest."""
    above: Interval | None
    """Mean score above blind mixing, over budgets from the cheapest to the best single model."""
    apgr: Interval | None
    """RouteLLM's, over shares of calls; None unless there are two models, all graded."""
    cpt50: Interval | None
    cpt80: Interval | None


class Evaluation(msgspec.Struct, frozen=True):
    """All of it. Scores are in [0, 1]; intervals hold 95 %, by a paired bootstrap over queries within their sets."""

    queries: int
    dropped: int
    """Queries that no model was graded on: left out."""
    elsewhere: int
    """Queries whose likeliest model was not graded there: the likeliest of the graded ones stands for it."""
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    sets: tuple[SetLine, ...]
    hits: tuple[Hits, ...]
    answers: Calibration
    """Of the probabilities of all graded answers."""
    choices: Calibration
    """Of those of the chosen ones alone."""
    priced: Priced | None
    """None where costs are not known."""
    draws: int
    seed: int

    def line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)


def evaluate(
    table: Table,
    scores: Scores,
    prior: Prior,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    bins: int = BINS,
) -> Evaluation:
    """`scores` are of the table's queries, in their order. `prior` is what is known without this table: it names the
    best single model, the constant ranking and the costs that the sweep expects.

    `UserError` where there is nothing to judge: no graded query, or no model that both know.
    """
    if not set(table.models) & set(scores.models):
        raise UserError(
            f"the table grades {', '.join(map(repr, table.models))}, the router knows "
            f"{', '.join(map(repr, scores.models))}: expected models of the same names"
        )
    rows = np.flatnonzero(np.isfinite(table.scores).any(axis=1))
    if not len(rows):
        raise UserError("no query of the table is graded: there is nothing to judge by")
    return _Judged(table.take(rows), aligned(scores, table.models)[rows], prior).evaluation(
        len(table.queries) - len(rows), draws, seed, bins
    )


class _Judged:
    """What all parts need: the ranking, the outcome of each way to choose, its dollars."""

    def __init__(self, table: Table, p: Floats, prior: Prior) -> None:
        self.table, self.p = table, p
        self.graded = np.isfinite(table.scores)
        self.expected = prior.costs(table.models)
        self.cost = np.where(np.isfinite(table.cost), table.cost, self.expected)
        means = prior.means(table.models)
        self.here = best(_column_means(table.scores))
        self.single = self.here if np.isnan(means).all() else best(means)
        self.ranking = ranked(p, self.graded, self.expected)
        self.constant = ranked(constant(means, len(p)), self.graded, self.expected)

    def evaluation(self, dropped: int, draws: int, seed: int, bins: int) -> Evaluation:
        table = self.table
        means = Means(table.sets)
        ways = self._ways()
        stands = ways[SINGLE][1]
        statistics: dict[str, Statistic] = {}
        for name, (_, score, _) in ways.items():
            both = {"": score, " gain": score - stands}
            for kind, values in both.items():
                statistics[f"whole {name}{kind}"] = lambda w, v=values: means.whole(w, v)
                statistics[f"macro {name}{kind}"] = lambda w, v=values: means.macro(w, v)
        for name, values in (("router", ways[ROUTER][1]), ("single", stands), ("gain", ways[ROUTER][1] - stands)):
            statistics[f"sets {name}"] = lambda w, v=values: means.per_set(w, v)
        for kind, rate in (("tied", hits.tied), ("right", hits.right)):
            for k in (1, 3):
                ours, same = (rate(table.scores, ranking, k) for ranking in (self.ranking, self.constant))
                for name, values in (("ours", ours), ("same", same), ("ahead", ours - same)):
                    statistics[f"{kind} {k} {name}"] = lambda w, v=values: means.whole(w, v)
        priced = _Money(self, statistics) if self._has_costs() else None
        found = spread(statistics, len(self.p), weights(table.groups, table.sets, draws, seed))
        lines = tuple(
            Line(
                name,
                model,
                *(found[f"{how} {name}{kind}"][0] for kind in ("", " gain") for how in ("whole", "macro")),
                cost=None if cost is None or np.isnan(cost).any() else float(cost.mean()),
            )
            for name, (model, _, cost) in ways.items()
        )
        oracle = means.per_set(np.ones((1, len(self.p))), ways[ORACLE][1])[0]
        columns = (
            means.names,
            means.sizes,
            found["sets router"],
            found["sets single"],
            found["sets gain"],
            oracle.tolist(),
        )
        return Evaluation(
            queries=len(self.p),
            dropped=dropped,
            elsewhere=int((taken(self.graded.astype(np.float64), self.p.argmax(axis=1)) == 0).sum()),
            models=table.models,
            lines=lines,
            sets=tuple(SetLine(*cells) for cells in zip(*columns, strict=True)),
            hits=tuple(self._hits(found, kind, k) for kind in ("tied", "right") for k in (1, 3)),
            answers=calibrated(self.p, table.scores, bins),
            choices=calibrated(taken(self.p, self.ranking[:, 0]), taken(table.scores, self.ranking[:, 0]), bins),
            priced=None if priced is None else priced.told(found),
            draws=draws,
            seed=seed,
        )

    def _ways(self) -> dict[str, tuple[str | None, Floats, Floats | None]]:
        """By name: the model, if it is one, the score of each query (NaN: not known), and its dollars."""
        score, cost, models = self.table.scores, self.cost, self.table.models
        top = np.where(self.graded, score, -1.0)
        oracle = ranked(top, self.graded, self.expected)[:, 0]
        count = self.graded.sum(axis=1)
        mixed = (np.where(self.graded, part, 0.0).sum(axis=1) / count for part in (score, cost))
        return {
            ROUTER: (None, taken(score, self.ranking[:, 0]), taken(cost, self.ranking[:, 0])),
            SINGLE: (models[self.single], score[:, self.single], cost[:, self.single]),
            HERE: (models[self.here], score[:, self.here], cost[:, self.here]),
            RANDOM: (None, *mixed),
            ORACLE: (None, taken(score, oracle), taken(cost, oracle)),
        }

    def _has_costs(self) -> bool:
        return bool(np.isfinite(self.expected).all() and np.isfinite(self.cost[self.graded]).all())

    def _hits(self, found: Mapping[str, list[Interval]], kind: str, k: int) -> Hits:
        top = hits.ceiling(self.table.scores) if kind == "right" else np.ones(1)
        parts = (found[f"{kind} {k} {name}"][0] for name in ("ours", "same", "ahead"))
        return Hits(kind, k, *parts, ceiling=float(np.nanmean(top)))


class _Money:
    """The curve, and the statistics of it, put beside all others so that they see the same draws."""

    def __init__(self, judged: _Judged, statistics: dict[str, Statistic]) -> None:
        table, expected = judged.table, judged.expected
        self._judged = judged
        self._curve = swept(judged.p, expected, table.scores, judged.cost)
        area = area_of(self._curve, table.scores, judged.cost, expected, judged.single)
        if area is not None:
            statistics["area"] = area
        weak = best(-expected)
        if len(table.models) == 2 and weak != judged.single and judged.graded.all():
            p, score = judged.p, table.scores
            strong = judged.single
            statistics["calls"] = CallShare(p[:, strong] - p[:, weak], score[:, strong], score[:, weak])

    def told(self, found: Mapping[str, list[Interval]]) -> Priced:
        judged, models = self._judged, self._judged.table.models
        cost, score = _column_means(judged.cost), _column_means(judged.table.scores)
        area, above = found.get("area") or (None, None)
        apgr, cpt50, cpt80 = found.get("calls") or (None, None, None)
        points = zip(self._curve.cost.mean(axis=0), self._curve.score.mean(axis=0), strict=True)
        return Priced(
            curve=tuple(Point(float(x), float(y)) for x, y in points),
            models={name: Point(float(cost[n]), float(score[n])) for n, name in enumerate(models)},
            cheapest=models[best(-judged.expected)],
            single=models[judged.single],
            area=area,
            above=above,
            apgr=apgr,
            cpt50=cpt50,
            cpt80=cpt80,
        )


def _column_means(values: Floats) -> Floats:
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
