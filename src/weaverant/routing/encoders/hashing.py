"""A text's n-grams as numbers: characters 2 to 4 and words 1 to 2, hashed, counted. numpy alone, no loop in Python.

Hashes are sums of c_i * B^i modulo 2^64, so that those of all n-grams of a length, and of all words, come from one
running sum. They are the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weaverant.routing.table import normal

LONGEST = 4_000
"""Characters. Of a longer text the two ends count, half of it each."""
CHARACTERS = (2, 3, 4)

Hashes = NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_WORD = np.uint64(0x94D049BB133111EB)
_PAIR = np.uint64(0xD6E8FEB86659FD93)


def _powers(base: np.uint64) -> Hashes:
    found = np.full(LONGEST + 3, base, dtype=np.uint64)
    found[0] = 1
    return np.multiply.accumulate(found)


_POWERS, _INVERSES = _powers(_BASE), _powers(_INVERSE)


def hashed(text: str, bits: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The numbers below 2**bits of the n-grams in a text, ascending, and 1 + log of how often each is there. Case and
    the kind of white space make no difference."""
    codes = _codes(text)
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * _POWERS[: len(codes)], out=sums[1:])
    kinds = [
        (sums[n:] - sums[:-n]) * _INVERSES[: len(codes) + 1 - n] + np.uint64(n) for n in CHARACTERS if n <= len(codes)
    ]
    blank = np.flatnonzero(codes == 32)
    starts, ends = blank[:-1] + 1, blank[1:]
    words = (sums[ends] - sums[starts]) * _INVERSES[starts] * _WORD
    kinds += [words, (words[:-1] ^ (words[1:] >> np.uint64(7))) * _PAIR]
    found = np.concatenate(kinds) * _MIX
    found ^= found >> np.uint64(31)
    found *= _BASE
    at, counts = np.unique((found >> np.uint64(64 - bits)).astype(np.int64), return_counts=True)
    return at, (1.0 + np.log(counts)).astype(np.float32)


def _codes(text: str) -> Hashes:
    """Code points, with one blank at each end and between words."""
    if len(text) > 2 * LONGEST:  # what casefold and single spaces leave of it is cut again
        text = text[:LONGEST] + text[-LONGEST:]
    kept = normal(text)
    if len(kept) > LONGEST:
        kept = kept[: LONGEST // 2] + kept[-LONGEST // 2 :]
    packed = f" {kept} ".encode("utf-32-le", "surrogatepass")
    return np.frombuffer(packed, dtype=np.uint32).astype(np.uint64)
