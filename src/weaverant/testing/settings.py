"""What a mock server is like."""

from __future__ import annotations

import ast
import inspect
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
        for name in ("latency", "skew", "slots", "tokens", "rpm", "tpm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number, 0 or more")
        if not 0 < self.minute < math.inf:
            raise ValueError(f"minute is {self.minute}; expected a number of seconds, above 0")
        if self.price and not _is_price(self.price):
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


def described() -> dict[str, str]:
    """What each setting means: its default, and the text that stands under it."""
    (body,) = ast.parse(inspect.getsource(Settings)).body
    assert isinstance(body, ast.ClassDef)
    told: dict[str, str] = {}
    name = ""
    for line in body.body:
        match line:
            case ast.AnnAssign(target=ast.Name(id=name)):
                pass
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                told[name] = f"{' '.join(text.split())} (by default {getattr(DEFAULTS, name)!r})"
            case _:
                pass
    return told


DEFAULTS = Settings()


def _is_price(text: str) -> bool:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(numbers) in (2, 3) and all(0 <= number < math.inf for number in numbers)
