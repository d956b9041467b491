"""From a table to a `Router`, and from a router to one whose probabilities fit other grades.

All that is chosen (head, settings, maps) is chosen on held-out folds of the table given, in which equal queries are
never parted. The encoder sees the texts of all of them, and no grades.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.calibration import Map, calibration_error, choose_maps
from weaverant.routing.encoders import fit_encoder
from weaverant.routing.folder import FORMAT
from weaverant.routing.heads import Given, head_kind
from weaverant.routing.router import Examples, Facts, Router, corrected
from weaverant.routing.scores import Floats
from weaverant.routing.selection import (
    NOTHING,
    TOP,
    Tried,
    candidates,
    chosen,
    folds_of,
    squared_error,
    top_of,
    try_heads,
)
from weaverant.routing.table import Table, normal

FOLDS = 5
SMALL = 20.0
"""Pairs of grades that a correlation of nought counts as."""


class Trained(NamedTuple):
    """A router and how it was chosen. Figures are means over held-out queries, the best single model's too."""

    router: Router
    best: Tried
    tried: list[Tried]
    single: str
    """The model with the highest mean score."""
    single_score: float
    """That mean, over all queries."""
    constant_top: float
    """The best score among the three with the highest means."""
    oracle: float
    """The best score of each query."""


def train(
    table: Table,
    *,
    head: str = "auto",
    encoder: str = "tfidf",
    settings: Mapping[str, float] = NOTHING,
    folds: int = FOLDS,
    seed: int = 0,
    say: Callable[[Tried], None] = lambda tried: None,
) -> Trained:
    """`UserError` for an unknown head, encoder or setting, or a table with fewer different queries than folds."""
    kinds = candidates(head)
    for kind in kinds:
        head_kind(kind)
    mean = [_graded(name, value) for name, value in zip(table.models, _means(table.scores), strict=True)]
    parts = folds_of(table, folds, seed)
    encode = fit_encoder(encoder, table.queries, seed)
    given = Given(table.queries, encode.encode(table.queries), encode.folder)
    tried = try_heads(kinds, given, table, parts, settings, seed, say)
    best = chosen(tried, table)
    maps, held = choose_maps(best.p, table.scores, parts)
    means = held_out_means(table.scores, parts)
    made = head_kind(best.kind).fit(given, table.scores, best.settings, seed)
    facts = Facts(
        format=FORMAT,
        kind=best.kind,
        encoder=encoder,
        settings={name: float(value) for name, value in best.settings.items()},
        models=table.models,
        calibration=tuple(maps),
        mean=tuple(mean),
        cost=tuple(_means(table.cost)),
        latency=tuple(_means(table.latency)),
        ece=calibration_error(held, table.scores),
        eces=tuple(_eces(held, table.scores)),
        table=table.digest(),
        queries=len(table.queries),
        seed=seed,
        validation=tuple(_told(each) for each in tried),
    )
    examples = Examples(table.queries, given.vectors, table.scores)
    router = Router(facts, encode, made, error_correlation(held, table.scores), examples)
    single = max(mean)
    return Trained(
        router,
        best,
        tried,
        table.models[mean.index(single)],
        single,
        top_of(means, table.scores, TOP),
        top_of(means, table.scores, len(table.models)),
    )


class Recalibrated(NamedTuple):
    """A router beside fresh grades."""

    router: Router
    before: float
    """The error on the same queries before, feedback included."""
    used: int
    """Queries, without those that it had learned from."""
    stayed: tuple[str, ...]
    """Models whose maps are the old ones: new ones erred no less on queries that they were not fitted on."""


def recalibrate(router: Router, table: Table, *, folds: int = FOLDS, seed: int = 0) -> Recalibrated:
    """The router with maps fitted to these grades, where they are better than those it has, and its errors on these
    queries, less those that it has learned from by training or feedback. Feedback stays with it, as it is beside the
    new maps, and all that is kept beside the router. `UserError` where they are too few, or a model is missing."""
    fresh = table.only(router.models).without(router.examples.texts)
    fresh = fresh.take([n for n, heard in enumerate(router.heard(fresh.queries)) if not heard])
    count = len({normal(query) for query in fresh.queries})
    if count < max(folds, 20):
        raise UserError(
            f"the table has {count} queries that the router has not learned from; expected at least {max(folds, 20)}"
        )
    y, old = fresh.scores, router.predict(fresh.queries).p
    maps, held = choose_maps(router.raw(fresh.queries), y, folds_of(fresh, folds, seed))
    new = _with_feedback(router, maps, fresh.queries, held)
    before = calibration_error(old, y)
    better = [
        made != was and squared_error(new[:, n], y[:, n]) < squared_error(old[:, n], y[:, n])
        for n, (made, was) in enumerate(zip(maps, router.facts.calibration, strict=True))
    ]
    if calibration_error(np.where(better, new, old), y) >= before:
        better = [False] * len(maps)
    found = np.where(better, new, old)
    kept = [new if good else was for good, new, was in zip(better, maps, router.facts.calibration, strict=True)]
    facts = structs.replace(
        router.facts,
        calibration=tuple(kept),
        ece=calibration_error(found, y),
        eces=tuple(_eces(found, y)),
        taught=router.taught,
    )
    made = Router(
        facts, router.encoder, router.head, router.correlation, router.examples, router.mapped(kept), router.aside
    )
    stayed = tuple(name for name, good in zip(router.models, better, strict=True) if not good)
    return Recalibrated(made, before, len(fresh.queries), stayed)


def _with_feedback(router: Router, maps: Sequence[Map], queries: Sequence[str], p: Floats) -> Floats:
    """What such probabilities would be with the feedback there is, beside these maps."""
    if not router.taught:
        return p
    online = router.mapped(maps)
    return np.stack(
        [corrected(own, online.change(vector).p) for own, vector in zip(p, router.encoder.encode(queries), strict=True)]
    )


def held_out_means(scores: Floats, folds: Sequence[NDArray[np.int64]]) -> Floats:
    """(N, M) The constant ranking: each model's mean over the other folds."""
    found = np.zeros(scores.shape)
    for fold in folds:
        others = np.setdiff1d(np.arange(len(scores)), fold)
        found[fold] = [each or 0.0 for each in _means(scores[others])]
    return found


def error_correlation(p: Floats, scores: Floats) -> Floats:
    """(M, M) How alike the models' errors are on the same queries, given their probabilities; drawn to nought where few
    queries were graded for both."""
    graded = ~np.isnan(scores)
    off: Floats = np.where(graded, scores - p, 0.0)
    seen: Floats = graded.astype(np.float64)
    both = seen.T @ seen
    scale: Floats = np.sqrt(np.square(off).T @ seen)
    found = (off.T @ off) / np.maximum(scale * scale.T, 1e-12) * both / (both + SMALL)
    np.fill_diagonal(found, 1.0)
    return np.clip((found + found.T) / 2.0, -1.0, 1.0)


def _means(values: Floats) -> list[float | None]:
    """Of each column; None where it has nothing."""
    known = ~np.isnan(values)
    sums = np.where(known, values, 0.0).sum(axis=0)
    counts = known.sum(axis=0)
    return [float(sums[n] / counts[n]) if counts[n] else None for n in range(values.shape[1])]


def _graded(model: str, mean: float | None) -> float:
    if mean is None:
        raise UserError(
            f"no grade of the model {model!r} is left; expected some, or the others alone: --models NAME,NAME"
        )
    return mean


def _eces(p: Floats, scores: Floats) -> list[float | None]:
    found: list[float | None] = []
    for model in range(p.shape[1]):
        graded = bool((~np.isnan(scores[:, model])).any())
        found.append(calibration_error(p[:, model], scores[:, model]) if graded else None)
    return found


def _told(tried: Tried) -> dict[str, object]:
    """For `router.json`."""
    return {
        "head": tried.kind,
        "settings": dict(tried.settings),
        "routed": tried.routed,
        "top 3": tried.top,
        "squared error": tried.error,
    }
