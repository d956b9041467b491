"""Which head, with which settings: tried on held-out folds of the table that a router learns from, and nowhere else.

Within a kind the settings with the least squared error win, which all grades of all models decide; of the kinds the one
whose choice of a model scored best, which is what a router is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.heads import AUTO, Given, Settings, head_kind, settings_of
from weaverant.routing.scores import Floats
from weaverant.routing.table import Table

TOP = 3


class Tried(Struct, frozen=True, eq=False):
    """A kind with its best settings, on queries that it had not seen."""

    kind: str
    settings: Settings
    p: Floats
    """(N, M) Held-out estimates."""
    routed: float
    """The mean score of the model with the highest estimate."""
    top: float
    """The mean of the best score among the three with the highest estimates."""
    error: float
    """The mean squared difference between estimates and scores."""


def candidates(head: str) -> tuple[str, ...]:
    """The kinds that a name stands for."""
    return AUTO if head == "auto" else tuple(head.split(","))


def try_heads(
    kinds: Sequence[str],
    given: Given,
    table: Table,
    folds: Sequence[NDArray[np.int64]],
    fixed: Mapping[str, float],
    seed: int = 0,
    say: Callable[[Tried], None] = lambda tried: None,
) -> list[Tried]:
    """Every kind with its best settings, the best kind first."""
    found: list[Tried] = []
    for kind in kinds:
        grid = settings_of(head_kind(kind), fixed)
        best = min((try_one(kind, s, given, table, folds, seed) for s in grid), key=lambda tried: tried.error)
        say(best)
        found.append(best)
    return sorted(found, key=lambda tried: -tried.routed)


def try_one(
    kind: str, settings: Settings, given: Given, table: Table, folds: Sequence[NDArray[np.int64]], seed: int = 0
) -> Tried:
    """What a head says of each fold when it was fitted on the others."""
    made, p = head_kind(kind), np.full(table.scores.shape, np.nan)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(table.queries)), fold)
        p[fold] = made.fit(given.take(others), table.scores[others], settings, seed).predict(given.take(fold)).p
    return Tried(
        kind, settings, p, routed(p, table.scores), top_of(p, table.scores, TOP), squared_error(p, table.scores)
    )


def folds_of(table: Table, count: int, seed: int) -> list[NDArray[np.int64]]:
    """`UserError` for a table that is too small."""
    try:
        return table.folds(count, seed)
    except ValueError as error:
        raise UserError(
            f"the table is too small to hold parts of it out: {error}. Expected at least {count} different queries; "
            "grade more, or take fewer folds: --folds 2"
        ) from None


def routed(p: Floats, scores: Floats) -> float:
    """The mean score of the model with the highest estimate among those that were graded on the query."""
    return top_of(p, scores, 1)


def top_of(p: Floats, scores: Floats, count: int) -> float:
    """The mean of the best score among the `count` with the highest estimates; ties go to the first by name."""
    some = ~np.isnan(scores).all(axis=1)
    ranked = np.argsort(np.where(np.isnan(scores), np.inf, -p), axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(np.where(np.isnan(scores), -np.inf, scores), ranked, axis=1).max(axis=1)
    return float(found[some].mean())


def squared_error(p: Floats, scores: Floats) -> float:
    return float(np.nanmean((p - scores) ** 2))
