"""Who is to be asked first: the chance of being right, less what it costs and how long it takes. Pure functions.

    utility = p - cost weight * expected cost / reference - latency weight * p95 latency / slo

Nobody with a reason to be refused is ranked. Ties go by cost, latency and name, so that the order is the same whatever
the order of the candidates. What nobody knows counts like the largest that is known: an unknown price is no bargain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct


class Candidate(Struct, frozen=True):
    """A model, as far as it is known before it is asked."""

    name: str
    p: float
    """The chance that its answer is right."""
    cost: float | None = None
    """US dollars that the call is expected to cost; None where nobody knows."""
    latency: float | None = None
    """Seconds: the 95th percentile of its calls; None where nobody knows."""
    refused: str = ""
    """Why it must not be asked."""


class Weights(Struct, frozen=True):
    """What money and time are worth, in chances of being right."""

    cost: float = 0.1
    """Of a call that costs the reference."""
    latency: float = 0.05
    """Of a call that takes the slo."""
    reference: float = 0.0
    """US dollars; 0: what the dearest candidate is expected to cost."""
    slo: float = 0.0
    """Seconds; 0: the latency of the slowest candidate."""
    quality: float = 0.0
    """Those whose chance is at least this go first, the cheapest of them before all; 0: by utility alone."""


class Ranked(Struct, frozen=True):
    """A candidate with its place."""

    name: str
    utility: float
    p: float
    cost: float
    """As it was counted."""
    latency: float
    reason: str
    """For people."""


def rank(candidates: Iterable[Candidate], weights: Weights = Weights()) -> list[Ranked]:  # noqa: B008
    """The candidates that are not refused, the best first."""
    able = [one for one in candidates if not one.refused]
    reference = weights.reference or _largest([one.cost for one in able])
    slo = weights.slo or _largest([one.latency for one in able])
    dearest = _largest([one.cost for one in able])
    slowest = _largest([one.latency for one in able])
    found: list[Ranked] = []
    for one in able:
        cost = dearest if one.cost is None else one.cost
        latency = slowest if one.latency is None else one.latency
        utility = one.p - weights.cost * _part(cost, reference) - weights.latency * _part(latency, slo)
        found.append(Ranked(one.name, utility, one.p, cost, latency, _reason(one, utility, weights.quality)))
    return sorted(found, key=lambda one: _place(one, weights.quality))


def refused(candidates: Iterable[Candidate]) -> dict[str, str]:
    """Why the others are not ranked, by name."""
    return {one.name: one.refused for one in sorted(candidates, key=lambda one: one.name) if one.refused}


def _place(one: Ranked, quality: float) -> tuple[float, ...] | tuple[float | str, ...]:
    if quality and one.p >= quality:
        return 0.0, one.cost, one.latency, -one.p, one.name
    if quality:
        return 1.0, -one.p, one.cost, one.latency, one.name
    return -one.utility, one.cost, one.latency, one.name


def _reason(one: Candidate, utility: float, quality: float) -> str:
    cost = "cost unknown" if one.cost is None else f"${one.cost:.3g}"
    latency = "latency unknown" if one.latency is None else f"p95 {one.latency:.3g} s"
    meets = "" if not quality else ", meets the quality" if one.p >= quality else ", below the quality"
    return f"p {one.p:.3f}, {cost}, {latency}: utility {utility:.3f}{meets}"


def _largest(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def _part(value: float, of: float) -> float:
    return value / of if of > 0 else 0.0
