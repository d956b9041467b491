"""A table of graded answers: which model was how right on which query. What routers learn from and are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.scores import Floats


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

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Table:
        """Those queries, in that order."""
        at = np.asarray(rows, dtype=np.int64)
        return Table(
            tuple(self.queries[n] for n in at),
            self.models,
            self.scores[at],
            self.cost[at],
            self.latency[at],
            tuple(self.sets[n] for n in at),
            self.groups[at],
        )
