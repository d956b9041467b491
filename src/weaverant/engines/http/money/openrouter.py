"""OpenRouter's own lists: what its models cost, with each of the providers it may send a request to.

https://openrouter.ai/docs/api-reference/list-models and .../list-endpoints-for-a-model; prices are dollars a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from msgspec import Struct

from weaverant.engines.http.address import Address
from weaverant.engines.http.key import Key
from weaverant.engines.http.listing import NotListed, get
from weaverant.engines.http.money.prices import Price
from weaverant.message import Request

SORTED = (":nitro", ":floor")
"""Suffixes of a model's name that change the order of its providers, and not which there are."""


class Offer(NamedTuple):
    """One provider of a model. `latency` is the median of the seconds to the first token; only a key is told it."""

    tag: str
    price: Price
    latency: float | None = None


def offers(address: Address, key: Key | None, model: str) -> list[Offer]:
    """Every provider's offer of that model, or `NotListed`."""
    name = model
    for suffix in SORTED:
        name = name.removesuffix(suffix)
    listed = get(address, key, f"models/{quote(name, safe='/:')}/endpoints", _Endpoints).data.endpoints
    found = [offer for one in listed if (offer := _offer(one)) is not None]
    if not found or len(found) < len(listed):
        raise NotListed(f"{model!r} is offered at no fixed price")
    return found


def models(address: Address, key: Key | None) -> dict[str, Price]:
    """All models, each at its usual price; those at no fixed price are left out."""
    listed = get(address, key, "models", _Models).data
    found = {one.id: _price(one.pricing, one.context_length, one.top_provider.max_completion_tokens) for one in listed}
    return {name: price for name, price in found.items() if price is not None}


def allowed(found: Sequence[Offer], request: Request) -> list[Offer]:
    """The offers that a request may be sent to, where its `provider` settings narrow them down; else all."""
    settings: object = request.sampling.extra.get("provider")
    if not isinstance(settings, dict):
        return list(found)
    wanted = cast("dict[str, Any]", settings)
    names: object = wanted.get("only") or (wanted.get("order") if wanted.get("allow_fallbacks") is False else None)
    if not isinstance(names, list):
        return list(found)
    slugs = {str(name).lower() for name in cast("list[object]", names)}
    return [offer for offer in found if offer.tag in slugs or offer.tag.partition("/")[0] in slugs] or list(found)


def dearest(found: Sequence[Offer]) -> Price:
    """A price that none of the offers goes beyond, in anything."""
    prices = [offer.price for offer in found]
    return Price(
        max(price.input for price in prices),
        max(price.output for price in prices),
        max(price.input if price.cached is None else price.cached for price in prices),
        0 if any(not price.most_output for price in prices) else max(price.most_output for price in prices),
        max(price.context for price in prices),
        write=max(price.write or price.input for price in prices),
        each=max(price.each for price in prices),
    )


class _Pricing(Struct):
    prompt: str | float | None = None
    completion: str | float | None = None
    request: str | float | None = None
    input_cache_read: str | float | None = None
    input_cache_write: str | float | None = None
    input_cache_write_1h: str | float | None = None
    internal_reasoning: str | float | None = None
    overrides: list[_Pricing] | None = None
    """Other prices under conditions, such as a long prompt. Fields that are absent do not change."""


class _Latency(Struct):
    """In milliseconds."""

    p50: float | None = None


class _Endpoint(Struct):
    pricing: _Pricing
    tag: str = ""
    provider_name: str = ""
    context_length: int | None = None
    max_completion_tokens: int | None = None
    latency_last_30m: _Latency | None = None


class _Model(Struct):
    endpoints: list[_Endpoint]


class _Endpoints(Struct):
    data: _Model


class _Provider(Struct, frozen=True):
    max_completion_tokens: int | None = None


class _Listed(Struct):
    id: str
    pricing: _Pricing
    context_length: int | None = None
    top_provider: _Provider = _Provider()


class _Models(Struct):
    data: list[_Listed]


def _offer(one: _Endpoint) -> Offer | None:
    price = _price(one.pricing, one.context_length, one.max_completion_tokens)
    median = one.latency_last_30m.p50 if one.latency_last_30m is not None else None
    tag = (one.tag or one.provider_name).lower()
    return None if price is None else Offer(tag, price, None if median is None else median / 1e3)


def _price(pricing: _Pricing, context: int | None, most_output: int | None) -> Price | None:
    """The dearest of a price and what overrides it: a bound, as OpenRouter tells itself what a reply has cost.

    None where it is not fixed: routers that pick a model by themselves are listed at -1.
    """
    every = (pricing, *(pricing.overrides or ()))

    def most(*names: str) -> float | None:
        found: list[Any] = [getattr(one, name) for one in every for name in names]
        return max((_dollars(value) for value in found if value is not None), default=None)

    prompt, completion = most("prompt"), most("completion", "internal_reasoning")
    if prompt is None or completion is None or min(_dollars(pricing.prompt), _dollars(pricing.completion)) < 0:
        return None
    return Price(
        prompt,
        completion,
        most("input_cache_read"),
        most_output or 0,
        context or 0,
        write=most("input_cache_write", "input_cache_write_1h"),
        each=(most("request") or 0.0) / 1e6,
    )


def _dollars(value: str | float | None) -> float:
    """For a million tokens; -1 where there is no number."""
    try:
        return -1.0 if value is None else round(float(value) * 1e6, 9)
    except ValueError:
        return -1.0
