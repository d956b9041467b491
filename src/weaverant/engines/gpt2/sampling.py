"""Draws tokens from logits. A row's draw depends on its own logits, settings and counter, and on nothing else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRAIN = 256.0
"""Logits are rounded to 1/256, so that the last bits of a matrix product, which vary by machine, seldom matter."""


def draw(
    logits: NDArray[np.float32],
    temperature: NDArray[np.float64],
    top_p: NDArray[np.float64],
    keys: NDArray[np.uint64],
    counters: NDArray[np.uint64],
) -> NDArray[np.intp]:
    """One token for each row of `logits` `[rows, vocabulary]`; all else is `[rows]`. Temperature 0 takes the best.

    The random number of a row is a hash of its key and counter: no generator is shared between rows.
    """
    rounded = np.rint(logits.astype(np.float64) * GRAIN) / GRAIN
    greedy = temperature <= 0
    warmth = np.where(greedy, 1.0, temperature)[:, None]
    weights = np.exp((rounded - rounded.max(-1, keepdims=True)) / warmth)
    for row in np.flatnonzero(top_p < 1):
        weights[row] = _nucleus(weights[row], float(top_p[row]))
    sums = weights.cumsum(-1)
    below = sums <= (uniform(keys, counters) * sums[:, -1])[:, None]
    chosen = below.sum(-1)
    chosen[greedy] = rounded[greedy].argmax(-1)
    return chosen


def uniform(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1): SplitMix64 (Steele, Lea and Flood 2014) at the counter-th step from each key."""
    z = keys + counters * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = (z ^ (z >> np.uint64(31))) >> np.uint64(11)
    return z.astype(np.float64) * 2.0**-53


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.float64]:
    """The weights of the likeliest tokens that together reach `top_p`, 0 for the rest (arXiv 1904.09751)."""
    order = np.argsort(-weights, kind="stable")
    before = weights[order].cumsum() - weights[order]
    kept = np.zeros_like(weights)
    chosen = order[before < top_p * weights.sum()]
    kept[chosen] = weights[chosen]
    return kept
