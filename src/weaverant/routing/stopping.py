"""Whether another layer is worth it, and who writes the answer. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp

from weaverant.routing.evidence import DISCERNING, logit
from weaverant.routing.keys import Key
from weaverant.routing.ranking import Together, all_wrong, burden
from weaverant.routing.utility import Candidate, Ranked, Weights

MOST_ERROR = 0.1
"""The expected calibration error up to which probabilities are good enough to stop on."""


def worth(
    posterior: Mapping[str, float],
    layer: Sequence[Ranked],
    weights: Weights,
    together: Together,
    discerning: float = DISCERNING,
) -> float:
    """What asking this layer is expected to gain, in probability of being right, less what it costs."""
    wait = max((one.latency for one in layer), default=0.0)
    could = reach(posterior, layer, together) - max(posterior.values(), default=0.0)
    return discerning * max(0.0, could) - burden((one.cost for one in layer), wait, weights)


def reach(posterior: Mapping[str, float], layer: Sequence[Ranked], together: Together) -> float:
    """The probability that any answer is right, of those given and of those of the layer: what an oracle would find."""
    asked = {one.name for one in layer}
    among = [*layer, *(Candidate(name, p) for name, p in posterior.items() if name not in asked)]
    return 1 - all_wrong(sorted(among, key=lambda one: (-one.p, one.name)), together)


def agreed(keys: Mapping[str, Key | None]) -> bool:
    """Whether at least two answers were given, and all mean the same."""
    given = [key for key in keys.values() if key is not None]
    return len(given) > 1 and len(set(given)) == 1


def reason_to_stop(
    *,
    keys: Mapping[str, Key | None],
    posterior: Mapping[str, float],
    layer: Sequence[Ranked],
    weights: Weights,
    together: Together,
    calibration_error: float | None,
    seconds_left: float | None,
    last: bool,
    enough: float | None = None,
    discerning: float = DISCERNING,
) -> str:
    """Why no further layer is asked; empty where one is. `layer` would be it. By value it stops only where the
    probabilities are known to be good ones."""
    if last:
        return "layers"
    if not layer:
        return "nobody left"
    if agreed(keys):
        return "agreement"
    wait = max(one.latency for one in layer)
    if seconds_left is not None and (seconds_left <= 0 or wait > seconds_left):
        return "deadline"
    if calibration_error is None or calibration_error > MOST_ERROR:
        return ""
    if enough is not None and max(posterior.values(), default=0.0) >= enough:
        return "good enough"
    return "value" if posterior and worth(posterior, layer, weights, together, discerning) <= 0 else ""


def standing(keys: Mapping[str, Key | None], posterior: Mapping[str, float], clear: float = 0.8) -> str | None:
    """Whose answer is the final one without an aggregator: the only one, the best where all agree, or the best where it
    is right with a probability of `clear`, given that at most one of different answers is. Of equals it is the one that
    stands first in `keys`: who was asked first. None where there is something to reconcile."""
    given = {name: key for name, key in keys.items() if key is not None}
    if not given:
        return None
    best = max(given, key=lambda name: posterior.get(name, 0.0))
    odds: dict[Key, float] = {}
    for name, key in given.items():
        odds[key] = max(odds.get(key, 0.0), exp(logit(posterior.get(name, 0.0))))
    if len(odds) == 1 or odds[given[best]] / (1 + sum(odds.values())) >= clear:
        return best
    return None
