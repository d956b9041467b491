"""What tokens cost: prices as data with a date, what a reply has cost, and the most that a request can cost.

`prices.json` is made by `tools/prices.py`. A model that is not in it has no price; the option `price` gives one.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.errors import UserError
from weaverant.message import ImagePart, Request, Usage

TEMPLATE = 256
"""Tokens, and amply so, that a server's chat template may add besides what the JSON around the texts pays for: a
date, a role of its own, the names of channels."""

TOOL_TEMPLATE = 1024
"""More of them where the request has tools: their instructions, which servers count as prompt."""

STORED_FROM = 1024
"""Tokens of the shortest prompt that OpenAI's servers put into their prefix cache, by their guide to it."""

BOUNDED = frozenset(
    (
        *("frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "temperature", "top_p", "top_k"),
        *("min_p", "seed", "random_seed", "stop", "n", "max_tokens", "max_completion_tokens", "verbosity", "user"),
        *("logprobs", "top_logprobs", "return_token_ids", "stream", "stream_options", "usage", "metadata", "provider"),
        *("reasoning", "reasoning_effort", "thinking", "chat_template_kwargs", "tool_choice", "parallel_tool_calls"),
        *("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice"),
    )
)
"""Fields of `extra` whose cost the bound covers. Any other may buy what no table of tokens tells: a search, another
model, a faster service."""


class Long(Struct, frozen=True, forbid_unknown_fields=True):
    """What all tokens of a request cost whose prompt is longer than `above` tokens."""

    above: int
    input: float
    output: float
    cached: float | None = None
    write: float | None = None


class Price(Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens. `most_output` is how many tokens one reply can have, 0 where nobody knows."""

    input: float
    output: float
    cached: float | None = None
    """Of input tokens that the server had in its prefix cache; None: as `input`."""
    most_output: int = 0
    context: int = 0
    """Tokens of the longest prompt; 0 where nobody knows."""
    date: str = ""
    """The day the price was looked up, YYYY-MM-DD."""
    write: float | None = None
    """Of input tokens that the server puts into its prefix cache; None: as `input`."""
    stores: bool = False
    """Whether it does so unasked. No usage says how many they were: of a long prompt all that was new counts."""
    long: Long | None = None
    each: float = 0.0
    """Dollars for a request, besides its tokens."""

    @property
    def free(self) -> bool:
        return not (self.input or self.output or self.each)

    def cost(self, usage: Usage) -> float:
        """Dollars for tokens that a server has counted."""
        rate = self._rate(usage.prompt_tokens)
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        at = rate.input if rate.cached is None else rate.cached
        stored = self.stores and usage.prompt_tokens >= STORED_FROM
        new = max(rate.input, rate.write or 0.0) if stored else rate.input
        tokens = (usage.prompt_tokens - cached) * new + cached * at + usage.completion_tokens * rate.output
        return tokens / 1e6 + self.each

    def most(self, prompt: int, output: int) -> float:
        """Dollars for that many tokens, at the dearest that each can cost."""
        rates = (self, self.long) if self.long is not None and prompt > self.long.above else (self,)
        dearest = max(max(rate.input, rate.cached or 0.0, rate.write or 0.0) for rate in rates)
        return (prompt * dearest + output * max(rate.output for rate in rates)) / 1e6 + self.each

    def _rate(self, prompt: int) -> Price | Long:
        return self.long if self.long is not None and prompt > self.long.above else self


class Table(Struct, frozen=True):
    """One provider's models, and when and where their prices were read."""

    date: str
    source: str
    models: dict[str, Price]


@cache
def tables() -> dict[str, Table]:
    """The packaged prices, by provider."""
    return msgspec.json.decode(Path(__file__).with_name("prices.json").read_bytes(), type=dict[str, Table])


def listed(provider: str, model: str) -> Price | None:
    """The packaged price of a model, None where there is none."""
    table = tables().get(provider)
    price = table.models.get(model) if table is not None else None
    return None if table is None or price is None else msgspec.structs.replace(price, date=table.date)


def parse_price(text: str) -> Price:
    """`IN,OUT` or `IN,OUT,CACHED`, dollars for a million tokens; `0` is free. `UserError` if it is no price."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    sane = all(math.isfinite(number) and number >= 0 for number in numbers)
    if not sane or len(numbers) not in (1, 2, 3) or (len(numbers) == 1 and numbers[0]):
        raise UserError(
            f"price={text[:40]!r} is no price; expected IN,OUT or IN,OUT,CACHED in dollars for a million tokens, "
            "as in price=0.25,2, or price=0 where it costs nothing"
        )
    numbers += [0.0] * (2 - len(numbers))
    return Price(numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else None)


def most_input(request: Request, body: bytes, image: int = 0) -> int:
    """Tokens of the prompt at most. No tokeniser in use makes more tokens than bytes of a text."""
    tools = TOOL_TEMPLATE if request.tools else 0
    return len(body) + TEMPLATE + tools + images(request) * image


def most_output(request: Request, price: Price) -> int | None:
    """Tokens of all replies together at most; None where neither the agent nor the price table bounds them.

    The limit that a request carries bounds reasoning as well, with every provider there is a preset for.
    """
    sampling = request.sampling
    asked = [sampling.extra[name] for name in ("max_tokens", "max_completion_tokens") if name in sampling.extra]
    if sampling.max_tokens is not None:
        asked.append(sampling.max_tokens)
    choices = sampling.extra.get("n", sampling.n)
    if not all(isinstance(number, int) for number in (*asked, choices)):
        return None
    longest: int = max(asked, default=price.most_output or price.context)
    return longest * max(1, choices) if longest > 0 else None


def unbounded(request: Request, price: Price | None, image: int = 0) -> str:
    """Why nobody can say what the request costs at most, and the way out; empty where `worst` can be asked."""
    if price is None:
        return "its price is unknown: give it with price=IN,OUT in dollars for a million tokens, or price=0"
    if price.free:
        return ""
    if images(request) and not image:
        return "it holds images, whose tokens nobody can count: say with image=N how many one has at most"
    strange = sorted(set(request.sampling.extra) - BOUNDED)
    if strange:
        return f"what {', '.join(map(repr, strange))} in the agent's `extra` costs is unknown: leave it out"
    if most_output(request, price) is None:
        return "its reply has no bound: give the agent max_tokens"
    return ""


def worst(request: Request, body: bytes, price: Price | None, image: int = 0) -> float | None:
    """The most that one request can cost in dollars; None where `unbounded` says why nobody knows."""
    if price is None or unbounded(request, price, image):
        return None
    return 0.0 if price.free else price.most(most_input(request, body, image), most_output(request, price) or 0)


def images(request: Request) -> int:
    """How many images the request holds. Few bytes may stand for many tokens, in a `data:` URL as well."""
    return sum(
        isinstance(part, ImagePart)
        for message in request.messages
        if not isinstance(message.content, str)
        for part in message.content
    )
