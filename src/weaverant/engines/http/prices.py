"""What tokens cost: prices as data with a date, and the most that a request can cost."""

from __future__ import annotations

from msgspec import Struct

from weaverant.message import Request, Usage


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens. `most_output` is how many tokens one reply can have, 0 where nobody knows."""

    input: float
    output: float
    cached: float | None = None
    """Of input tokens that the server had in its prefix cache; None: as `input`."""
    most_output: int = 0
    context: int = 0
    """Tokens of prompt and reply together; 0 where nobody knows."""
    date: str = ""
    """The day the price was looked up, YYYY-MM-DD."""

    def cost(self, usage: Usage) -> float:
        """Dollars for tokens that a server has counted."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        at = self.input if self.cached is None else self.cached
        fresh = usage.prompt_tokens - cached
        return (fresh * self.input + cached * at + usage.completion_tokens * self.output) / 1e6


def most_output(request: Request, price: Price) -> int | None:
    """Tokens of the longest reply to the request; None where neither the agent nor the price table bounds it."""
    asked = request.sampling.max_tokens
    bound = price.most_output or price.context
    if asked is None:
        return bound or None
    return asked


def most_input(body: bytes) -> int:
    """No tokeniser that is in use makes more tokens than bytes of a text; the JSON around it pays for the template."""
    return len(body)


def worst(request: Request, body: bytes, price: Price) -> float | None:
    """The most that one request can cost in dollars; None where its reply has no known bound."""
    longest = most_output(request, price)
    if longest is None:
        return None
    dearest = max(price.input, price.cached or 0.0)
    choices = max(1, request.sampling.n)
    return (most_input(body) * dearest + choices * longest * price.output) / 1e6


def parse_price(text: str) -> Price | None:
    """`IN,OUT` or `IN,OUT,CACHED`, dollars for a million tokens; `0` is free. None if it is no price."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return None
    if not 1 <= len(numbers) <= 3 or any(number < 0 for number in numbers) or (len(numbers) == 1 and numbers[0]):
        return None
    numbers += [0.0] * (2 - len(numbers))
    return Price(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None)
