"""A mock server's own account of what it was asked to do, to compare with what a run believes it spent."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from weaverant.testing.settings import Settings


class Item(Struct, frozen=True):
    """One call. `digest` is that of the request's body, in hexadecimal."""

    digest: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    dollars: float


class Bill:
    """Every call whose work was done, whether or not anybody was there to take the reply."""

    def __init__(self) -> None:
        self.items: list[Item] = []

    @property
    def dollars(self) -> float:
        return math.fsum(item.dollars for item in self.items)

    def add(self, digest: bytes, model: str, usage: dict[str, Any], settings: Settings, share: float = 1.0) -> None:
        """Charge the tokens that a reply reports, at that share of the price."""
        if settings.price:
            prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
            dollars = share * charge(usage, settings)
            self.items.append(Item(digest.hex(), model, prompt, completion, dollars))


def charge(usage: dict[str, Any], settings: Settings) -> float:
    """Dollars for the tokens of a reply."""
    if not settings.price:
        return 0.0
    given, taken, *rest = settings.prices
    cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    fresh = usage["prompt_tokens"] - cached
    return (fresh * given + cached * (rest[0] if rest else given) + usage["completion_tokens"] * taken) / 1e6
