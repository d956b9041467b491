"""`tfidf`: hashed n-grams, weighted by rarity, seen in the directions in which the table's queries differ most.

The directions are a truncated singular value decomposition (latent semantic analysis; Halko et al. 2011: random
projection with power iterations). So a query is a short dense vector, and a neighbour is found in a matrix that fits a
cache: nothing but numpy, and a fraction of a millisecond.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.encoders.hashing import hashed
from weaverant.routing.encoders.vectors import Vectors

BITS = 15
"""2**15 numbers for n-grams. With 2**18, routers chosen on `llmrouter` were no better."""
DIMS = 96
SPARE = 16
PASSES = 2
STRANGE = 0.05
"""Share of the table's own queries whose vectors are shorter than 1."""

Sparse = tuple[NDArray[np.int64], NDArray[np.float32]]


class Tfidf:
    """Thread-safe. A text that has less in common with the table than nearly all of its queries has a shorter vector,
    so that one from elsewhere has no near neighbours by accident."""

    def __init__(self, directions: NDArray[np.float16], rarity: NDArray[np.float32], usual: float) -> None:
        self._directions, self._rarity, self._usual = directions, rarity, usual

    @classmethod
    def fit(cls, rest: str, texts: Sequence[str], seed: int) -> Tfidf:
        rows = [hashed(text, BITS) for text in dict.fromkeys(texts)]
        seen = np.zeros(1 << BITS)
        for at, _ in rows:
            seen[at] += 1
        rarity = (np.log((1 + len(rows)) / (1 + seen)) + 1).astype(np.float32)
        found = _directions([_weighted(row, rarity) for row in rows], min(DIMS, len(rows)), np.random.default_rng(seed))
        made = cls(found.astype(np.float16), rarity, 0.0)
        shares = np.linalg.norm(np.stack([made._onto(row) for row in rows]), axis=1)
        return cls(made._directions, rarity, float(np.float32(np.quantile(shares, STRANGE))))

    @classmethod
    def load(cls, rest: str, arrays: Mapping[str, NDArray[np.generic]]) -> Tfidf:
        usual = float(arrays["usual"].astype(np.float64)[0])
        return cls(arrays["directions"].astype(np.float16), arrays["rarity"].astype(np.float32), usual)

    @property
    def dims(self) -> int:
        return self._directions.shape[1]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        return {"directions": self._directions, "rarity": self._rarity, "usual": np.array([self._usual])}

    def encode(self, texts: Sequence[str]) -> Vectors:
        """(n, dims), rows of length 1, or less for a text that is like none in the table."""
        found = np.zeros((len(texts), self.dims), dtype=np.float32)
        for n, text in enumerate(texts):
            onto = self._onto(hashed(text, BITS))
            length = float(np.linalg.norm(onto))
            if length > 0:
                found[n] = onto / max(length, self._usual)
        return found

    def _onto(self, row: Sparse) -> Vectors:
        """(dims,) What the directions say of a text of length 1."""
        at, values = _weighted(row, self._rarity)
        return values @ self._directions[at].astype(np.float32)


def _weighted(row: Sparse, rarity: NDArray[np.float32]) -> Sparse:
    at, counts = row
    values = counts * rarity[at]
    return at, values / max(float(np.linalg.norm(values)), 1e-9)


def _directions(rows: Sequence[Sparse], dims: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(2**BITS, dims): the first right singular vectors of the rows."""
    width = min(dims + SPARE, len(rows))
    basis = random.standard_normal((1 << BITS, width), dtype=np.float32)
    for _ in range(PASSES + 1):
        basis = _back(rows, np.linalg.qr(_onto(rows, basis))[0])
    values, turn = np.linalg.eigh(basis.T.astype(np.float64) @ basis)
    kept = [n for n in np.argsort(-values, kind="stable")[:dims].tolist() if values[n] > 1e-6]
    found = (basis @ turn[:, kept]) / np.sqrt(values[kept])
    signs = np.sign(found[np.abs(found).argmax(axis=0), np.arange(len(kept))])
    return (found * signs).astype(np.float32)


def _onto(rows: Sequence[Sparse], basis: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([values @ basis[at] for at, values in rows])


def _back(rows: Sequence[Sparse], onto: NDArray[np.float32]) -> NDArray[np.float32]:
    found = np.zeros((1 << BITS, onto.shape[1]), dtype=np.float32)
    for (at, values), row in zip(rows, onto, strict=True):
        found[at] += values[:, None] * row
    return found
