"""`none`: no vectors, for heads that read the texts themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.encoders.vectors import Vectors


class Blank:
    """Rows of no length."""

    dims = 0

    @classmethod
    def fit(cls, rest: str, texts: Sequence[str], seed: int) -> Blank:
        return cls()

    @classmethod
    def load(cls, rest: str, arrays: Mapping[str, NDArray[np.generic]]) -> Blank:
        return cls()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.zeros((len(texts), 0), dtype=np.float32)
