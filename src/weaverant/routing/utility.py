"""What asking a model is worth: P(right) - cost weight x expected cost - latency weight x p95 latency. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Offer(msgspec.Struct, frozen=True):
    """What is thought of asking one model one query, before it is asked."""

    name: str
    p: float
    """The probability that its answer is right."""
    sd: float = 0.0
    """Of `p`."""
    cost: float | None = None
    """US dollars expected; None where nobody knows."""
    latency: float | None = None
    """Seconds, the 95th percentile; None where nobody knows."""


class Weights(msgspec.Struct, frozen=True):
    """What a dollar and a second are worth, in probability of being right."""

    cost: float = 0.0
    """Per US dollar."""
    latency: float = 0.0
    """Per second."""


def priced(offers: Sequence[Offer]) -> list[Offer]:
    """The offers with no unknowns: what nobody knows is as dear, and as slow, as the worst that is known; where nothing
    is known it is 0 for all."""
    dearest = max((offer.cost for offer in offers if offer.cost is not None), default=0.0)
    slowest = max((offer.latency for offer in offers if offer.latency is not None), default=0.0)
    return [
        msgspec.structs.replace(
            offer,
            cost=dearest if offer.cost is None else offer.cost,
            latency=slowest if offer.latency is None else offer.latency,
        )
        for offer in offers
    ]


def utility(offer: Offer, weights: Weights) -> float:
    """In probability. Unknowns count as 0: see `priced`."""
    return offer.p - weights.cost * (offer.cost or 0.0) - weights.latency * (offer.latency or 0.0)


def ranked(offers: Iterable[Offer], weights: Weights) -> list[Offer]:
    """The best first. Ties go to the cheaper one, then to the faster, then by name: no order of input matters."""
    known = priced(list(offers))
    return sorted(known, key=lambda one: (-round(utility(one, weights), 12), one.cost, one.latency, one.name))
