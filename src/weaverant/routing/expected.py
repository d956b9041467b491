"""What a call to a member may be expected to cost, and how long it may take, as far as is known right now."""

from __future__ import annotations

from collections.abc import Mapping

from weaverant.message import Request
from weaverant.routing.observed import Observed
from weaverant.routing.pool import Pool, prompt_tokens
from weaverant.routing.utility import Candidate

REPLY = 300
"""Tokens of a reply by whom nobody has heard yet, where the agent allows so many."""


def expected_cost(pool: Pool, observed: Observed, name: str, request: Request) -> float | None:
    """US dollars; None where nobody knows: no price, and no call so far. A price is held against this prompt and the
    mean length of the member's replies; without one, the mean cost of its calls stands."""
    record, price = observed.of(name), pool.price(name)
    if price is None:
        return record.cost.value
    limit = request.sampling.max_tokens
    reply = record.completion.value
    if reply is None:
        reply = min(REPLY, limit) if limit is not None else REPLY
    return prompt_tokens(request.messages) * price[0] + reply * request.sampling.n * price[1]


def candidates(
    pool: Pool,
    observed: Observed,
    request: Request,
    p: Mapping[str, float],
    cost: Mapping[str, float | None] = {},
    latency: Mapping[str, float | None] = {},
) -> list[Candidate]:
    """The members with these chances of being right. `cost` and `latency` are a router's, for whom nothing else is
    known of. Who cannot answer such a request is refused; budgets and breakers are the business of whoever asks."""
    found: list[Candidate] = []
    for name in p:
        dollars, seconds = expected_cost(pool, observed, name, request), observed.of(name).p95
        found.append(
            Candidate(
                name,
                p[name],
                cost.get(name) if dollars is None else dollars,
                latency.get(name) if seconds is None else seconds,
                pool.refuses(name, request),
            )
        )
    return found
