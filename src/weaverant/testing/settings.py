"""What a mock server is like."""

from __future__ import annotations

import math
from typing import Literal

from msgspec import Struct

Metrics = Literal["", "vllm", "sglang", "llamacpp"]


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All of it may be changed while the server runs."""

    scenario: str = "ok"
    """How calls are answered that ask for no other way; see `scenarios`."""
    latency: float = 0.0
    """Seconds of work for a call, once it has a place. Of a stream the pieces are spread over it."""
    skew: float = 0.0
    """Sigma of a lognormal factor on the latency, which is then the median: a function of the request's body."""
    slots: int = 100_000
    """Calls worked on at once; the others queue."""
    reject: bool = False
    """Refuse with 429 what finds no free place, rather than queue it."""
    tokens: int = 0
    """Completion tokens to report, at most as many as the request allows; 0: the words of the text."""
    rpm: int = 0
    """Requests admitted in any minute; 0: no limit."""
    tpm: int = 0
    """Tokens admitted in any minute: a quarter of the body's bytes and max_tokens, or else `tokens`."""
    minute: float = 60.0
    """Seconds of the minute that `rpm` and `tpm` mean."""
    price: str = ""
    """`IN,OUT` or `IN,OUT,CACHED` in dollars for a million tokens; empty: no bill is kept."""
    metrics: Metrics = ""
    """Whose /metrics to serve; empty: none."""

    def __post_init__(self) -> None:
        if min(self.latency, self.skew, self.slots, self.tokens, self.rpm, self.tpm) < 0 or self.minute <= 0:
            raise ValueError(f"expected numbers that are not negative and a minute above 0, found {self}")
        if self.price and len(self.prices) not in (2, 3):
            raise ValueError(f"price is {self.price!r}; expected IN,OUT or IN,OUT,CACHED, like 0.5,1.5")

    @property
    def prices(self) -> tuple[float, ...]:
        return tuple(float(part) for part in self.price.split(","))

    def seconds(self, digest: bytes) -> float:
        """How long the call with that body takes."""
        if not self.skew or not self.latency:
            return self.latency
        first = (int.from_bytes(digest[:4], "big") + 1) / 2**32
        second = int.from_bytes(digest[4:8], "big") / 2**32
        normal = math.sqrt(-2.0 * math.log(first)) * math.cos(2.0 * math.pi * second)
        return self.latency * math.exp(self.skew * normal)
