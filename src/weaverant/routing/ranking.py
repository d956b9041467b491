"""Which models are asked together. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from weaverant.routing.scores import Floats
from weaverant.routing.utility import Candidate, Ranked, Weights

ALIKE = 0.3
"""How far two models' errors go together where no table says: most questions are hard or easy for all."""

Together = Callable[[str, str], float]
"""The correlation of two models' errors, in [-1, 1]."""


def correlations(models: Sequence[str], matrix: Floats | Sequence[Sequence[float]]) -> Together:
    """Of a router's matrix; the mean of all pairs for a model that it does not know."""
    index = {name: n for n, name in enumerate(models)}
    pairs = [value for a in range(len(models)) for b in range(a) if math.isfinite(value := float(matrix[a][b]))]
    usual = sum(pairs) / len(pairs) if pairs else ALIKE

    def together(one: str, other: str) -> float:
        if one == other:
            return 1.0
        if one not in index or other not in index:
            return usual
        value = float(matrix[index[one]][index[other]])
        return value if math.isfinite(value) else usual

    return together


def all_wrong(candidates: Sequence[Candidate | Ranked], together: Together) -> float:
    """The probability that all of them are wrong. Each is tied to the one before it whose error tells most of its own:
    exact for two, a tree's approximation for more."""
    product = 1.0
    for n, one in enumerate(candidates):
        product *= max((_given_wrong(one, other, together) for other in candidates[:n]), default=1 - one.p)
    return product


def _given_wrong(one: Candidate | Ranked, other: Candidate | Ranked, together: Together) -> float:
    """P(this one is wrong | the other is)."""
    wrong, odds = 1 - one.p, other.p / max(1e-9, 1 - other.p)
    return min(1.0, max(0.0, wrong + together(one.name, other.name) * math.sqrt(one.p * wrong * odds)))


def resolved(ranked: Sequence[Ranked], weights: Weights) -> Weights:
    """The weights with what they refer to: the dearest and the slowest of these, where nothing is given."""
    reference = weights.reference or max((one.cost for one in ranked), default=0.0)
    slo = weights.slo or max((one.latency for one in ranked), default=0.0)
    return msgspec.structs.replace(weights, reference=reference, slo=slo)


def burden(costs: Iterable[float], seconds: float, weights: Weights) -> float:
    """What calls of such costs, that take so long together, are counted as, in chances of being right."""
    money = weights.cost * sum(costs) / weights.reference if weights.reference > 0 else 0.0
    return money + (weights.latency * seconds / weights.slo if weights.slo > 0 else 0.0)


def chosen(ranked: Sequence[Ranked], k: int, weights: Weights, together: Together) -> list[Ranked]:
    """At most k of those that `rank` gave: first the best, then one after the other whoever adds most to the
    probability that at least one is right, less what it costs and what it makes all wait longer. Who adds less than
    that is not asked. Ties go to the better rank. The weights are `resolved`."""
    left = list(ranked)
    if not left:
        return []
    found = [left.pop(0)]
    while left and len(found) < k:
        before, slowest = all_wrong(found, together), max(one.latency for one in found)
        gains = [
            before - all_wrong([*found, one], together) - burden([one.cost], max(0.0, one.latency - slowest), weights)
            for one in left
        ]
        best = max(range(len(left)), key=lambda n: (round(gains[n], 12), -n))
        if gains[best] <= 0:
            break
        found.append(left.pop(best))
    return found
