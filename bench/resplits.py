"""One table split again and again: learn from four fifths, judge by the fifth, and what the splits come to together."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from weaverant.routing.evaluation.accuracy import Means
from weaverant.routing.evaluation.choice import Prior, aligned, best, prior_of, ranked, taken
from weaverant.routing.evaluation.judge import Evaluation, evaluate
from weaverant.routing.evaluation.resample import Interval, corrected, spread, weights
from weaverant.routing.scores import Floats, Scores
from weaverant.routing.table import Table

SPLITS = 10
SHARE = 0.2
DRAWS = 2000

Learn = Callable[[Table, int], Callable[[tuple[str, ...]], Scores]]
"""From a table and a seed to what predicts."""


@dataclass(eq=False)
class Splits:
    """What the splits of one table came to."""

    name: str
    table: Table
    found: list[Evaluation] = field(default_factory=list)
    gains: list[Floats] = field(default_factory=list)
    """Of each split (queries of the whole table,): the score beside the best single model's; NaN where not judged."""
    sizes: tuple[int, int] = (0, 1)
    """Queries judged and learned from, of the last split."""
    cpu: float = 0.0
    """Seconds of processor time."""

    def mean(self, value: Callable[[Evaluation], float]) -> Interval:
        """Over the splits."""
        return corrected([value(one) for one in self.found], *self.sizes)

    def pooled(self) -> Interval:
        """Each question's mean gain, bootstrapped over questions."""
        stack = np.array(self.gains)
        judged = np.isfinite(stack)
        count = judged.sum(axis=0)
        gain = np.where(count > 0, np.where(judged, stack, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)
        means = Means(self.table.sets)
        drawn = weights(self.table.groups, self.table.sets, DRAWS)
        return spread({"gain": lambda some: means.whole(some, gain)}, len(gain), drawn)["gain"][0]


def judged(name: str, table: Table, learn: Learn, splits: int = SPLITS) -> Splits:
    """So many times: learn from four fifths, judge by the fifth."""
    told = Splits(name, table)
    numbers = np.arange(len(table.queries))
    begin = time.process_time()
    for seed in range(splits):
        held = numbers[split_rows(table, seed)]
        kept = np.setdiff1d(numbers, held)
        train, test = table.take(kept), table.take(held)
        prior = prior_of(train)
        scores = learn(train, seed)(test.queries)
        told.found.append(evaluate(test, scores, prior, draws=2, seed=seed))
        told.sizes = (len(held), len(kept))
        gain = np.full(len(numbers), np.nan)
        gain[held] = gains(test, scores, prior)
        told.gains.append(gain)
    told.cpu = time.process_time() - begin
    return told


def split_rows(table: Table, seed: int) -> np.ndarray:
    """(N,) whether each query is held out: a fifth of the groups."""
    groups, at = np.unique(table.groups, return_inverse=True)
    chosen = np.zeros(len(groups), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(groups))[: round(SHARE * len(groups))]] = True
    return chosen[at]


def gains(table: Table, scores: Scores, prior: Prior) -> Floats:
    """(N,) the chosen model's score beside the best single model's."""
    graded_ = np.isfinite(table.scores)
    first = ranked(aligned(scores, table.models), graded_, prior.costs(table.models))[:, 0]
    return taken(table.scores, first) - table.scores[:, best(prior.means(table.models))]
