"""From texts to vectors. `fit_encoder` makes one from the text of `--encoder`, `load_encoder` from what it saved.

Each kind is a class in a module of its own, loaded when it is named, with `fit`, `load`, `dims`, `arrays` and `encode`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from threading import Lock
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from weaverant.errors import UserError
from weaverant.message import digest
from weaverant.routing.encoders.vectors import Vectors

KINDS = {
    "tfidf": "weaverant.routing.encoders.tfidf:Tfidf",
    "minilm": "weaverant.routing.encoders.minilm:MiniLM",
    "endpoint": "weaverant.routing.encoders.endpoint:Endpoint",
    "checkpoint": "weaverant.routing.encoders.checkpoint:Checkpoint",
    "none": "weaverant.routing.encoders.blank:Blank",
}
KEPT = 4_096
"""Queries whose vectors are remembered."""

Arrays = Mapping[str, NDArray[np.generic]]


class Encoder(Protocol):
    """Thread-safe; a text's vector depends on no other text."""

    @property
    def dims(self) -> int: ...

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What it learned, for `load`."""
        ...

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, dims) float32; each row of length 1, or less for a text that is like none that it was fitted on."""
        ...


class _Kind(Protocol):
    def fit(self, rest: str, texts: Sequence[str], seed: int) -> Encoder: ...

    def load(self, rest: str, arrays: Arrays) -> Encoder: ...


def fit_encoder(spec: str, texts: Sequence[str], seed: int = 0) -> Cached:
    """`tfidf`, `minilm`, `endpoint:URL#MODEL`, or `none` for heads that read texts; `UserError` for anything else."""
    kind, rest = _kind(spec)
    return Cached(kind.fit(rest, texts, seed))


def load_encoder(spec: str, arrays: Arrays) -> Cached:
    kind, rest = _kind(spec)
    return Cached(kind.load(rest, arrays))


class Cached:
    """An encoder that remembers the vectors of the last queries."""

    def __init__(self, encoder: Encoder, kept: int = KEPT) -> None:
        self._encoder, self._most = encoder, kept
        self._kept: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = Lock()

    @property
    def dims(self) -> int:
        return self._encoder.dims

    @property
    def folder(self) -> str:
        """Of a checkpoint; empty for all other encoders."""
        return getattr(self._encoder, "folder", "")

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return self._encoder.arrays()

    def encode(self, texts: Sequence[str]) -> Vectors:
        keys = [digest(text.encode("utf-8", "surrogatepass")) for text in texts]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            made = self._encoder.encode(list(missing.values()))
            found |= dict(zip(missing, made, strict=True))
        with self._lock:
            for key in keys[-self._most :]:
                self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return np.stack([found[key] for key in keys]) if keys else np.zeros((0, self.dims), dtype=np.float32)


def _kind(spec: str) -> tuple[_Kind, str]:
    name, _, rest = spec.partition(":")
    if name not in KINDS:
        near = get_close_matches(name, KINDS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        expected = "tfidf, minilm, endpoint:URL#MODEL or checkpoint:FOLDER"
        raise UserError(f"there is no encoder {name!r}.{hint} Expected {expected}")
    module, _, attribute = KINDS[name].partition(":")
    return cast(_Kind, getattr(import_module(module), attribute)), rest
