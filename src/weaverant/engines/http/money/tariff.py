"""What one model at one server costs: where its price is known from, and the bounds that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from weaverant.engines.http.address import Address
from weaverant.engines.http.key import Key
from weaverant.engines.http.listing import NotListed
from weaverant.engines.http.money import openrouter, prices
from weaverant.engines.http.money.openrouter import Offer
from weaverant.engines.http.money.prices import Price
from weaverant.message import Reply, Request


@dataclass(frozen=True)
class Tariff:
    """`price` is None where it is unknown; a reply then counts as free, unless the server says what it cost."""

    price: Price | None
    image: int = 0
    offers: tuple[Offer, ...] = ()
    """OpenRouter's providers of the model."""
    note: str = ""
    """Where the price is from, for people."""

    def unbounded(self, request: Request) -> str:
        """Why nobody can say what the request costs at most, and the way out; empty where `worst` can."""
        return prices.unbounded(request, self.price, self.image)

    def worst(self, request: Request, body: bytes) -> float | None:
        """The most that one request with that body can cost, in dollars; None where `unbounded` says why."""
        price = openrouter.dearest(openrouter.allowed(self.offers, request)) if self.offers else self.price
        return prices.worst(request, body, price, self.image)

    def priced(self, reply: Reply) -> Reply:
        """The reply with what it cost, unless the server has said that itself."""
        if self.price is None or reply.usage.cost:
            return reply
        usage = msgspec.structs.replace(reply.usage, cost=self.price.cost(reply.usage))
        return msgspec.structs.replace(reply, usage=usage)


def find_tariff(address: Address, model: str, key: Key | None) -> Tariff:
    """The tariff of a model: the option `price`, else OpenRouter's own list, else the packaged table."""
    options = address.options
    table = prices.listed(address.preset.name, model)
    if options.price:
        given = prices.parse_price(options.price)
        if table is not None:
            given = msgspec.structs.replace(given, most_output=table.most_output, context=table.context)
        return Tariff(given, options.image, note="price as given")
    if address.preset.name == "openrouter":
        return replace(_asked(address, model, key), image=options.image)
    note = f"price of {table.date}" if table is not None else "price unknown"
    return Tariff(table, options.image, note=note)


def _asked(address: Address, model: str, key: Key | None) -> Tariff:
    # No list is packaged: OpenRouter's prices change daily, and the dearest of a model's providers bounds the cost.
    try:
        found = openrouter.offers(address, key, model)
    except NotListed as error:
        return Tariff(None, note=f"price unknown, as OpenRouter's list could not be read: {error}")
    latencies = [offer.latency for offer in found if offer.latency is not None]
    fastest = f", first token after {min(latencies):.3g} s in the median at best" if latencies else ""
    return Tariff(openrouter.dearest(found), 0, tuple(found), f"dearest of {len(found)} providers now{fastest}")
