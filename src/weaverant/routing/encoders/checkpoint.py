"""`checkpoint:FOLDER`: an encoder of transformers from a folder of yours, such as mDeBERTa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.encoders.vectors import Vectors
from weaverant.routing.transformer import Transformer


class Checkpoint:
    """Loaded when it is made, so that a wrong folder is told at once."""

    def __init__(self, folder: str) -> None:
        if not folder:
            raise UserError("an encoder from a folder is written checkpoint:FOLDER; found no folder")
        self.folder = folder
        self._model = Transformer(folder)
        self._lock = Lock()

    @classmethod
    def fit(cls, rest: str, texts: Sequence[str], seed: int) -> Checkpoint:
        return cls(rest)

    @classmethod
    def load(cls, rest: str, arrays: Mapping[str, NDArray[np.generic]]) -> Checkpoint:
        return cls(rest)

    @property
    def dims(self) -> int:
        return self._model.dims

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            return self._model.encode(texts)
