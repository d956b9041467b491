"""A table of graded answers: which model was how right on which query. What routers learn from and are judged by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.message import digest
from weaverant.routing.scores import Floats

NO_VALUES: Mapping[str, float] = {}


class Graded(msgspec.Struct, frozen=True):
    """One query and what is known of the models' answers to it; a model that is not named was not asked."""

    query: str
    scores: Mapping[str, float]
    """By model, in [0, 1]."""
    cost: Mapping[str, float] = NO_VALUES
    """US dollars, by model."""
    latency: Mapping[str, float] = NO_VALUES
    """Seconds, by model."""
    set: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """N queries, M models. The columns are in the order of the models' names, so that no file's key order matters."""

    queries: tuple[str, ...]
    """N texts."""
    models: tuple[str, ...]
    """M names, sorted."""
    scores: Floats
    """(N, M) in [0, 1]; NaN where the model was not asked."""
    cost: Floats
    """(N, M) US dollars per answer; NaN where nobody knows."""
    latency: Floats
    """(N, M) seconds per answer; NaN where nobody knows."""
    sets: tuple[str, ...]
    """N names of the set that each query is of; `""` where the table tells none."""
    groups: NDArray[np.int64]
    """(N,) Queries that must not be parted when the table is split: equal texts, but for case and white space."""

    @staticmethod
    def of(rows: Iterable[Graded], models: Sequence[str] | None = None) -> Table:
        """A table of those rows, with the models wanted or else all that they name. `UserError` where there is no row,
        or no score of a model."""
        kept = list(rows)
        names = sorted(set(models) if models is not None else {name for row in kept for name in row.scores})
        if not kept or not names:
            raise UserError("a table of graded answers has at least one query and one model; this one has none")
        if unknown := sorted(set(names) - {name for row in kept for name in row.scores}):
            known = sorted({name for row in kept for name in row.scores})
            raise UserError(f"no row has a score of the model {unknown[0]!r}; expected some of {_listed(known)}")
        ids: dict[str, int] = {}
        return Table(
            tuple(row.query for row in kept),
            tuple(names),
            _columns([row.scores for row in kept], names),
            _columns([row.cost for row in kept], names),
            _columns([row.latency for row in kept], names),
            tuple(row.set for row in kept),
            np.array([ids.setdefault(normal(row.query), len(ids)) for row in kept], dtype=np.int64),
        )

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Table:
        """Those queries, in that order."""
        at = np.asarray(rows, dtype=np.int64)
        numbers: list[int] = at.tolist()
        return Table(
            tuple(self.queries[n] for n in numbers),
            self.models,
            self.scores[at],
            self.cost[at],
            self.latency[at],
            tuple(self.sets[n] for n in numbers),
            self.groups[at],
        )

    def without(self, texts: Iterable[str]) -> Table:
        """All queries but those that equal one of the texts, but for case and white space: those that somebody has
        seen before."""
        seen = {normal(text) for text in texts}
        return self.take([n for n, query in enumerate(self.queries) if normal(query) not in seen])

    def folds(self, count: int, seed: int = 0) -> list[NDArray[np.int64]]:
        """The rows of `count` parts of nearly one size, which share no group. `ValueError` with fewer groups."""
        unique, sizes = np.unique(self.groups, return_counts=True)
        if not 1 < count <= len(unique):
            raise ValueError(f"{len(unique)} different queries cannot be cut into {count} parts")
        order = np.random.default_rng(seed).permutation(len(unique))
        before = np.cumsum(sizes[order]) - sizes[order]
        fold_of = np.empty(len(unique), dtype=np.int64)
        fold_of[order] = np.minimum(before * count // len(self.queries), count - 1)
        rows = fold_of[np.searchsorted(unique, self.groups)]
        return [np.flatnonzero(rows == n) for n in range(count)]

    def split(self, share: float, seed: int = 0) -> tuple[Table, Table]:
        """All but a share of the queries, and that share; no group is in both."""
        unique, at = np.unique(self.groups, return_inverse=True)
        held = max(1, min(len(unique) - 1, round(share * len(unique))))
        chosen = np.zeros(len(unique), dtype=bool)
        chosen[np.random.default_rng(seed).permutation(len(unique))[:held]] = True
        return self.take(np.flatnonzero(~chosen[at])), self.take(np.flatnonzero(chosen[at]))

    def only(self, models: Sequence[str]) -> Table:
        """Those models, in the order of their names. `UserError` for one that is not in the table."""
        for name in models:
            if name not in self.models:
                raise UserError(f"the table has no model {name!r}; expected some of {_listed(self.models)}")
        at = [n for n, name in enumerate(self.models) if name in set(models)]
        names = tuple(self.models[n] for n in at)
        costs = (self.scores[:, at], self.cost[:, at], self.latency[:, at])
        return Table(self.queries, names, *costs, self.sets, self.groups)

    def digest(self) -> str:
        """What tells it from every other: queries, models and all numbers."""
        head = msgspec.msgpack.encode((self.queries, self.models, self.sets))
        return digest(head + b"".join(each.tobytes() for each in (self.scores, self.cost, self.latency))).hex()


def normal(text: str) -> str:
    """A text by which equal queries are known: without case, with single spaces."""
    return " ".join(text.casefold().split())


def _columns(values: Sequence[Mapping[str, float]], names: Sequence[str]) -> Floats:
    nan = float("nan")
    found = [[each.get(name, nan) for name in names] for each in values]
    return np.array(found, dtype=np.float64).reshape(len(values), len(names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
