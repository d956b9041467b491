"""What is known of each model before it is asked: the one contract between scorers and whoever uses them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """For each query and model. All arrays have the shape (queries, models); `models` names the columns."""

    models: tuple[str, ...]
    p: Floats
    """The probability that the model's answer is right, in [0, 1]; the expected score where answers are graded."""
    sd: Floats
    """The standard deviation of `p`: how little is known, not how much answers vary."""
    support: Floats
    """How many graded answers it rests on, weighted by how near they are; 0 where only a prior speaks."""


class Scorer(Protocol):
    """From texts to scores. Thread-safe; the same texts give the same scores, whatever else is asked beside them."""

    @property
    def models(self) -> tuple[str, ...]:
        """Those it scores, in the order of the columns, which is that of their names."""
        ...

    @property
    def identity(self) -> str:
        """What tells it from every other: kind, settings and what it learned, as a short digest."""
        ...

    def predict(self, queries: Sequence[str]) -> Scores: ...
