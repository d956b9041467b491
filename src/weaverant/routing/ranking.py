"""Who is asked: what rules a model out, and which of the rest go together. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from weaverant.message import Request
from weaverant.routing.observed import Observed
from weaverant.routing.pool import Pool
from weaverant.routing.scores import Floats
from weaverant.routing.utility import Offer, Weights, ranked

ALIKE = 0.3
"""How far two models' errors go together where no table says: most questions are hard or easy for all."""

Together = Callable[[str, str], float]
"""The correlation of two models' errors, in [-1, 1]."""


def ruled_out(
    pool: Pool,
    names: Iterable[str],
    request: Request,
    observed: Observed,
    at: float,
    left: float | None,
    costs: Mapping[str, float | None],
) -> dict[str, str]:
    """Who cannot be asked, and why: context, tools, modality, health, budget. `left` dollars may still be spent; who
    is dearer than that, or of unknown cost, is out where that is limited. `at` is Unix time."""
    found: dict[str, str] = {}
    for name in names:
        cost = costs.get(name)
        if why := pool.refuses(name, request):
            found[name] = why
        elif observed.health(name, at) == "open":
            found[name] = "it failed several times in a row"
        elif left is not None and (cost is None or cost > left):
            found[name] = "nobody knows its cost" if cost is None else f"${cost:.4g} is more than the ${left:.4g} left"
    return found


def correlations(models: Sequence[str], matrix: Floats) -> Together:
    """Of a router's matrix; the mean of all pairs for a model that it does not know."""
    index = {name: n for n, name in enumerate(models)}
    pairs = [float(matrix[a, b]) for a in range(len(models)) for b in range(a) if math.isfinite(matrix[a, b])]
    usual = sum(pairs) / len(pairs) if pairs else ALIKE

    def together(one: str, other: str) -> float:
        if one == other:
            return 1.0
        if one not in index or other not in index:
            return usual
        value = float(matrix[index[one], index[other]])
        return value if math.isfinite(value) else usual

    return together


def all_wrong(offers: Sequence[Offer], together: Together) -> float:
    """The probability that all of them are wrong. Each is tied to the one before it whose error tells most of its own: exact for
    two, a tree's approximation for more."""
    product = 1.0
    for n, offer in enumerate(offers):
        product *= max((_given_wrong(offer, other, together) for other in offers[:n]), default=1 - offer.p)
    return product


def _given_wrong(offer: Offer, other: Offer, together: Together) -> float:
    """P(this one is wrong | the other is)."""
    wrong, odds = 1 - offer.p, other.p / max(1e-9, 1 - other.p)
    return min(1.0, max(0.0, wrong + together(offer.name, other.name) * math.sqrt(offer.p * wrong * odds)))


def chosen(offers: Iterable[Offer], k: int, weights: Weights, together: Together) -> list[Offer]:
    """At most k, one after the other: first the one of the greatest utility, then whoever adds most to the probability
    that at least one is right, less what it costs (and what it makes all wait longer). Who adds less than that is not asked. Ties as
    in `ranked`."""
    left = ranked(offers, weights)
    if not left:
        return []
    found = [left.pop(0)]
    while left and len(found) < k:
        before, slowest = all_wrong(found, together), max(one.latency or 0.0 for one in found)
        gains = [
            before
            - all_wrong([*found, one], together)
            - weights.cost * (one.cost or 0.0)
            - weights.latency * max(0.0, (one.latency or 0.0) - slowest)
            for one in left
        ]
        best = max(range(len(left)), key=lambda n: (round(gains[n], 12), -n))
        if gains[best] <= 0:
            break
        found.append(left.pop(best))
    return found
