"""Which head, with which settings: tried on held-out folds of the table that a router learns from, and nowhere else.

Within a kind the settings with the least squared error win, which all grades of all models decide. Of the kinds, those
whose choice of a model scored within one standard error of the best are as good; of them, too, the least error wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.heads import AUTO, Given, Settings, check_setting, head_kind, settings_of
from weaverant.routing.heads.blend import joined
from weaverant.routing.scores import Floats
from weaverant.routing.table import Table

TOP = 3
NOTHING: Mapping[str, float] = {}


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


BLEND = "blend"


def candidates(head: str) -> tuple[str, ...]:
    """The kinds that a name stands for: `auto`, one, or several with commas."""
    return (*AUTO, BLEND) if head == "auto" else tuple(dict.fromkeys(head.split(",")))


def try_heads(
    kinds: Sequence[str],
    given: Given,
    table: Table,
    folds: Sequence[NDArray[np.int64]],
    fixed: Mapping[str, float] = NOTHING,
    seed: int = 0,
    say: Callable[[Tried], None] = lambda tried: None,
) -> list[Tried]:
    """Every kind with its best settings, in the order given. A blend is one of those settings' heads."""
    _check(kinds, fixed)
    found: dict[str, Tried] = {}

    def best(kind: str) -> Tried:
        if kind not in found:
            if kind == BLEND:
                parts = {part: best(part) for part in AUTO}
                p = np.mean([part.p for part in parts.values()], axis=0).astype(np.float64)
                found[kind] = _told(kind, joined({name: part.settings for name, part in parts.items()}), p, table)
            else:
                grid = settings_of(head_kind(kind), _own(kind, fixed))
                tries = (try_one(kind, settings, given, table, folds, seed) for settings in grid)
                found[kind] = min(tries, key=lambda tried: tried.error)
            say(found[kind])
        return found[kind]

    return [best(kind) for kind in kinds]


def chosen(tried: Sequence[Tried], table: Table) -> Tried:
    """The best of the kinds."""
    first = max(tried, key=lambda each: each.routed)
    at_best = picked(first.p, table.scores)

    def as_good(each: Tried) -> bool:
        less = at_best - picked(each.p, table.scores)
        return float(less.mean()) <= float(less.std() / np.sqrt(max(1, len(less) - 1)))

    return min((each for each in tried if as_good(each)), key=lambda each: each.error)


def _own(kind: str, fixed: Mapping[str, float]) -> dict[str, float]:
    """Those of the settings that are this kind's, as `k` or `knn.k`."""
    known = head_kind(kind).GRID[0]
    whole = {name: value for name, value in fixed.items() if name in known}
    return whole | {name: fixed[f"{kind}.{name}"] for name in known if f"{kind}.{name}" in fixed}


def _check(kinds: Sequence[str], fixed: Mapping[str, float]) -> None:
    """`UserError` for a setting that nothing has which is tried, or a value that it cannot have."""
    tried = [*kinds, *(AUTO if BLEND in kinds else ())]
    known = {name for kind in tried if kind != BLEND for name in head_kind(kind).GRID[0]}
    named = {f"{kind}.{name}" for kind in tried if kind != BLEND for name in head_kind(kind).GRID[0]}
    for name, value in fixed.items():
        if name not in known | named:
            raise UserError(f"no head that is tried has a setting {name!r}; expected one of {', '.join(sorted(known))}")
        check_setting(name, float(value))


def try_one(
    kind: str, settings: Settings, given: Given, table: Table, folds: Sequence[NDArray[np.int64]], seed: int = 0
) -> Tried:
    """What a head says of each fold when it was fitted on the others."""
    made, p = head_kind(kind), np.full(table.scores.shape, np.nan)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(table.queries)), fold)
        p[fold] = made.fit(given.take(others), table.scores[others], settings, seed).predict(given.take(fold)).p
    return _told(kind, settings, p, table)


def _told(kind: str, settings: Settings, p: Floats, table: Table) -> Tried:
    y = table.scores
    return Tried(kind, settings, p, routed(p, y), top_of(p, y, TOP), squared_error(p, y))


def folds_of(table: Table, count: int, seed: int) -> list[NDArray[np.int64]]:
    """`UserError` for a table that is too small, or fewer than two."""
    if count < 2:
        raise UserError(f"expected 2 folds or more to hold out in turn (--folds N); found {count}")
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
    return float(picked(p, scores, count).mean())


def picked(p: Floats, scores: Floats, count: int = 1) -> Floats:
    """For each query on which a model was graded, the best score among the `count` with the highest estimates."""
    some = ~np.isnan(scores).all(axis=1)
    ranked = np.argsort(np.where(np.isnan(scores), np.inf, -p), axis=1, kind="stable")[:, :count]
    found = np.take_along_axis(np.where(np.isnan(scores), -np.inf, scores), ranked, axis=1).max(axis=1)
    return found[some]


def squared_error(p: Floats, scores: Floats) -> float:
    return float(np.nanmean((p - scores) ** 2))
