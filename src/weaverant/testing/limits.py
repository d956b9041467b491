"""Rate limits as hosted providers have them: requests and tokens in any window of a minute."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import NamedTuple

from weaverant.testing.settings import Settings


class Refusal(NamedTuple):
    """`seconds` until the same request would pass; infinite where nobody knows, or it never would."""

    what: str
    limit: int
    seconds: float

    @property
    def headers(self) -> dict[str, str]:
        if math.isinf(self.seconds):
            return {}
        return {
            "Retry-After": str(math.ceil(self.seconds)),
            "retry-after-ms": str(math.ceil(1e3 * self.seconds)),
        }


class Window:
    """At most `limit` in any `seconds`; a limit of 0 is none."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._log: deque[tuple[float, int]] = deque()
        self._used = 0

    def wait(self, amount: int, now: float) -> float:
        """Seconds until the amount fits."""
        self._forget(now)
        over = self._used + amount - self.limit
        if not self.limit or over <= 0:
            return 0.0
        for at, freed in self._log:
            over -= freed
            if over <= 0:
                return at + self.seconds - now
        return math.inf

    def take(self, amount: int, now: float) -> None:
        self._log.append((now, amount))
        self._used += amount

    def headers(self, name: str, now: float) -> dict[str, str]:
        """As OpenAI words them; `reset` is when the whole limit will be free again."""
        self._forget(now)
        reset = self._log[-1][0] + self.seconds - now if self._log else 0.0
        return {
            f"x-ratelimit-limit-{name}": str(self.limit),
            f"x-ratelimit-remaining-{name}": str(max(0, self.limit - self._used)),
            f"x-ratelimit-reset-{name}": duration(reset),
        }

    def _forget(self, now: float) -> None:
        while self._log and self._log[0][0] <= now - self.seconds:
            self._used -= self._log.popleft()[1]


class Limits:
    """Both windows of a server. Only what is admitted counts. `admitted` sums up the tokens of all that was."""

    def __init__(self, settings: Settings) -> None:
        self._requests = Window(settings.rpm, settings.minute)
        self._tokens = Window(settings.tpm, settings.minute)
        self.admitted = 0

    def change(self, settings: Settings) -> None:
        self._requests.limit, self._tokens.limit = settings.rpm, settings.tpm
        self._requests.seconds = self._tokens.seconds = settings.minute

    def admit(self, tokens: int) -> Refusal | None:
        """Take a request and its tokens, or say why not; then nothing is taken."""
        self.admitted += tokens
        if not self._requests.limit and not self._tokens.limit:
            return None
        now = time.monotonic()
        for window, what, amount in ((self._requests, "requests", 1), (self._tokens, "tokens", tokens)):
            seconds = window.wait(amount, now)
            if seconds:
                self.admitted -= tokens
                return Refusal(what, window.limit, seconds)
        self._requests.take(1, now)
        self._tokens.take(tokens, now)
        return None

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        now = time.monotonic()
        for window, name in ((self._requests, "requests"), (self._tokens, "tokens")):
            if window.limit:
                found |= window.headers(name, now)
        return found


def duration(seconds: float) -> str:
    """`6m0s`, `1.5s` or `20ms`, as in OpenAI's headers."""
    milliseconds = math.ceil(1e3 * max(0.0, seconds))
    if milliseconds < 1_000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds / 1e3, 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
