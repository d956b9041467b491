"""One server of a pool: the endpoint, and everything that decides whether it gets the next call."""

from __future__ import annotations

import asyncio
import math
import random
import time
from zlib import crc32

from msgspec import Struct

from weaverant.engines.http.address import Address
from weaverant.engines.http.attempt import Attempt, Trouble
from weaverant.engines.http.endpoint import Endpoint
from weaverant.engines.http.flow.bucket import RateLimits
from weaverant.engines.http.flow.gauges import parse_gauges
from weaverant.engines.http.flow.health import Health
from weaverant.engines.http.flow.window import Window
from weaverant.engines.http.money.meter import Meter
from weaverant.engines.http.pool.call import Call, backoff
from weaverant.message import Reply, Request
from weaverant.protocols import Load

LONGEST_METRICS_S = 2.0
"""Seconds a server is given to tell its gauges."""

SHORTEST_S = 0.5
"""A `Retry-After` of less says as much as none: some servers send 0 as long as they refuse."""

LEARN_S = 0.1
"""Seconds between two looks at the rate limits in replies' headers."""

FORGOTTEN = 10.0
"""After so many times its latency, a replica's latency is no news any more."""


class Replica:
    """Times are seconds of `time.monotonic()`."""

    def __init__(self, address: Address, most: int, now: float, parts: int = 1) -> None:
        """`parts`: see `Pool`."""
        options = address.options
        self.endpoint = Endpoint(address)
        self.address = address
        self.identity = f"http:{options.name or self.endpoint.model}"
        self.window = Window(most, now, max(1, options.start // parts) if options.start else 0)
        self.limits = RateLimits(options.rpm / parts, options.tpm / parts, now)
        self.health = Health(now)
        self.gauged = True
        """Whether it may still turn out to tell its gauges."""
        self.drained: asyncio.Event | None = None
        """Set, once the replica was removed, when no call is in flight any more."""
        self.salt = crc32(f"{address.base}#{self.endpoint.model}".encode())
        self._meter = Meter(options.hourly) if options.hourly else None
        self._limited_at = -math.inf
        self._limited_in_a_row = 0
        self._heard_at = -math.inf
        self._learned_at = -math.inf

    @property
    def name(self) -> str:
        return f"{self.endpoint.name}#{self.endpoint.model}"

    def ready(self, call: Call, now: float) -> bool:
        """Whether it may be sent a request of the call now."""
        limits = self.limits
        return (
            self.window.room
            and self.health.ready_at <= now
            and (not limits.known or limits.wait(call.tokens, now) == 0.0)
        )

    def wait(self, call: Call, now: float) -> float:
        """Seconds until it may be; inf where only the end of a request will tell."""
        if not self.window.room:
            return math.inf
        return max(self.health.wait(now), self.limits.wait(call.tokens, now) if self.limits.known else 0.0)

    def load(self) -> float:
        """The share of its window that would be in use with one more request."""
        return (self.window.in_flight + 1) / self.window.size

    def latency(self, now: float) -> float:
        """Seconds of its recent replies; 0.0 where there is no news."""
        seconds = self.window.seconds()
        return seconds if now - self._heard_at < 1.0 + FORGOTTEN * seconds else 0.0

    def worst(self, request: Request) -> float | None:
        """The most that one request can cost in dollars; None where `unbounded` says why nobody knows. Hours of a
        server cannot be set aside: a call's share of them is known when it ends."""
        if self._meter is not None and self.endpoint.price is None:
            return 0.0
        return self.endpoint.worst(request)

    def unbounded(self, request: Request) -> str:
        """Why `worst` says None, and the way out; empty where it does not."""
        if self._meter is not None and self.endpoint.price is None:
            return ""
        why = self.endpoint.unbounded(request)
        return f"{self.name}: {why}" if why else ""

    def take(self, call: Call, now: float) -> Place:
        """A place for one request of the call."""
        among = self.window.begin(now)
        if self.limits.known:
            self.limits.take(call.tokens, now)
        mark = 0.0 if self._meter is None else self._meter.begin(now)
        return Place(self, now, among, mark, self.health.begin())

    def restart(self, place: Place, now: float) -> None:
        """The request is sent only now: what its place was held for before is no part of the server's latency."""
        self.window.end(now, place.began, "dropped")
        place.among = self.window.begin(now)
        place.began = now

    def give_back(self, place: Place, call: Call, attempt: Attempt | None, now: float) -> float:
        """The call's request is over; None: it was dropped by us. Gives the dollars of its time at a server paid
        hourly, if it was sent."""
        if attempt is None:
            self.window.end(now, place.began, "dropped")
            self.health.dropped(place.probe)
            if not place.sent:
                self.limits.give_back(call.tokens, now)
        elif isinstance(outcome := attempt.outcome, Reply):
            self._limited_in_a_row = 0
            self._heard_at = now
            self.window.end(now, place.began, "reply", place.among)
            self.health.reply(now)
            if self.limits.known:
                used = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
                self.limits.settle(call.tokens, used or call.tokens, now)
            if now - self._learned_at >= LEARN_S:
                self._learn(attempt, now)
        else:
            self._trouble(place, outcome, now, again=self in call.tried)
            self._learn(attempt, now)
        if self.drained is not None and not self.window.in_flight:
            self.drained.set()
        if self._meter is None:
            return 0.0
        dollars = self._meter.end(place.mark, now)
        return dollars if place.sent else 0.0

    async def poll(self) -> None:
        """Ask the server for its gauges. One that has none is not asked again; one that is silent just now is."""
        text = await self.endpoint.metrics(LONGEST_METRICS_S)
        if text is None:
            return
        gauges = parse_gauges(text)
        if gauges is None:
            self.gauged = False
        else:
            self.window.gauge(time.monotonic(), gauges)

    def describe(self, now: float) -> Load:
        """For people."""
        window = self.window
        trouble = self.health.describe(now) or (self.limits.describe(now) if self.limits.known else "")
        return Load(self.name, window.in_flight, window.size, window.seconds() or 0.0, trouble)

    def _learn(self, attempt: Attempt, now: float) -> None:
        self._learned_at = now
        self.limits.learn(attempt.headers, now)

    def _trouble(self, place: Place, trouble: Trouble, now: float, again: bool) -> None:
        if limited(trouble):
            self.window.end(now, place.began, "limited", place.among)
            why = f"it answered {trouble.status}, and said when to come back"
            why = "rate limit" if trouble.blame == "limit" else why
            self.health.pause(now, self._pause(place, trouble.retry_after, now), why)
        elif trouble.blame == "call":
            self.window.end(now, place.began, "refused" if trouble.status else "dropped")
            if trouble.status:
                self.health.reply(now)
            else:  # it was never sent
                self.health.dropped(place.probe)
        else:
            self.window.end(now, place.began, "failed")
            arrived = trouble.blame == "server" or trouble.billed
            self.health.failed(now, place.probe, arrived, again)

    def _pause(self, place: Place, retry_after: float | None, now: float) -> float:
        """Seconds that all calls keep away. Many refused together are one refusal: it grows only where a request
        was refused that had been sent after the last pause began."""
        if retry_after is not None and retry_after >= SHORTEST_S:
            self._limited_at = now
            return retry_after + random.uniform(0, 0.1 * retry_after + 0.05)
        if place.began < self._limited_at:
            return 0.0
        self._limited_at = now
        self._limited_in_a_row += 1
        return backoff(self._limited_in_a_row, self.address.options.backoff)


class Place(Struct, eq=False):
    """A replica's place, held by one request from `Replica.take` to `Replica.give_back`."""

    replica: Replica
    began: float
    among: int
    """How many the replica had in flight with it."""
    mark: float
    """What the meter wants back."""
    probe: bool
    """Whether the request finds out if the replica is back."""
    charged: float = 0.0
    """What the queue wants back."""
    sent: bool = False
    """Whether the server may have counted it."""
    left: bool = False
    """It is given back."""


def limited(trouble: Trouble) -> bool:
    """Whether the server is willing, later: 429, or a 5xx that says when."""
    return trouble.blame == "limit" or (trouble.blame == "server" and trouble.retry_after is not None)
