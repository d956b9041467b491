"""What encoders make: one row a text, of length 1, or less where the text is like none that the encoder knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def unit(rows: Vectors) -> Vectors:
    """The rows with length 1; those of nothing stay 0."""
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return (rows / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)
