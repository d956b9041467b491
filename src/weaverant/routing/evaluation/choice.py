"""Who is asked: the models of each query in the router's order, and the lines it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.scores import Floats, Scores
from weaverant.routing.table import Table

Places = NDArray[np.int64]


def ranked(p: Floats, graded: NDArray[np.bool_], cost: Floats) -> Places:
    """(N, M) columns, best first: by probability, then the cheaper one, then by column. What is not graded comes last.

    `cost` (M,) are the dollars expected of an answer; NaN counts as the dearest.
    """
    columns = np.argsort(np.where(np.isnan(cost), np.inf, cost), kind="stable")
    told = np.where(graded, p, -np.inf)[:, columns]
    return columns[np.argsort(-told, axis=1, kind="stable")]


def taken(values: Floats, places: Places) -> Floats:
    """(N,) of each row the value in that column."""
    return values[np.arange(len(values)), places]


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of the models before the judged queries are seen: from the table that the router learned from."""

    mean: Mapping[str, float | None]
    """Mean score by name; None: never graded."""
    cost: Mapping[str, float | None]
    """Dollars an answer by name; None: nobody knows."""

    def means(self, models: tuple[str, ...]) -> Floats:
        return _column(self.mean, models)

    def costs(self, models: tuple[str, ...]) -> Floats:
        return _column(self.cost, models)


def prior_of(table: Table) -> Prior:
    """That of a table: means over what is graded and over what has a cost."""
    return Prior(_means(table.models, table.scores), _means(table.models, table.cost))


def aligned(scores: Scores, models: tuple[str, ...]) -> Floats:
    """The probabilities in the order of those models; -1 where the router knows none of that name, so it comes last."""
    columns = {name: scores.p[:, number] for number, name in enumerate(scores.models)}
    unknown = np.full(len(scores.p), -1.0)
    return np.stack([columns.get(name, unknown) for name in models], axis=1)


def constant(means: Floats, queries: int) -> Floats:
    """(N, M) the same ranking for every query: that by the models' means."""
    return np.tile(np.where(np.isnan(means), -1.0, means), (queries, 1))


def best(means: Floats) -> int:
    """The column of the highest mean; the first of equal ones."""
    return int(np.argmax(np.where(np.isnan(means), -np.inf, means)))


def _column(values: Mapping[str, float | None], models: tuple[str, ...]) -> Floats:
    found = (values.get(name) for name in models)
    return np.array([np.nan if value is None else value for value in found], dtype=np.float64)


def _means(models: tuple[str, ...], values: Floats) -> dict[str, float | None]:
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return {name: float(total[n] / count[n]) if count[n] else None for n, name in enumerate(models)}
