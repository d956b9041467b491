"""Requests and tokens a minute, paced so evenly that no way of counting them finds too many.

Servers count in three ways: in windows of a minute that begin anywhere, over the last 60 s, or with a bucket that
holds a minute's worth and refills steadily. Never more than the limit in any 60 s satisfies all three.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from weaverant.engines.http.flow.quota import Quota, requests_quota, tokens_quota

SHY = 0.98
"""So much of a limit is used. With the burst it makes 99.6 % of it in any 60 s."""

BURST_S = 1.0
"""How far ahead of the even pace one may be."""

CELL_S = 0.25
REMEMBER_S = 60.5
"""What was taken is remembered in cells of `CELL_S`, for longer than a minute: requests take differently long to
arrive."""


class Bucket:
    """So much a minute, evenly, with a burst of a second's worth (GCRA, the generic cell rate algorithm).

    An amount larger than the burst goes when nothing is owed, and is owed then; and never are more than a minute's
    worth taken in 60 s, however amounts differ. An amount larger than that goes alone.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.taken = 0.0
        """In all."""
        self._owed_until = now
        self._empty_until = now
        self._cells: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; 0.0: now."""
        ahead = max(0.0, BURST_S - amount / self._per_second)
        at = max(self._owed_until - ahead, self._empty_until)
        return max(0.0, at - now, self._room_at(amount, now) - now)

    def take(self, amount: float, now: float) -> None:
        """It was taken, whether or not it had to be waited for."""
        self.taken += amount
        self._owed_until = max(self._owed_until, now) + amount / self._per_second
        end = (math.floor(now / CELL_S) + 1) * CELL_S
        if self._cells and self._cells[-1][0] == end:
            amount_before = self._cells.pop()[1]
            self._cells.append((end, amount_before + amount))
        else:
            self._cells.append((end, amount))
        self._sum += amount

    def settle(self, estimated: float, actual: float, now: float) -> None:
        """The reply told the true amount: what went beyond the estimate is owed.

        Nothing is given back. A server that reserves the prompt and `max_tokens` at admission does not give back
        either what a reply left unused, at least not within the minute; one that counts true tokens has more room
        than we take, which costs time but no rejection, and which its headers tell (`RateLimits.learn`).
        """
        if actual > estimated:
            self.take(actual - estimated, now)

    def empty_until(self, until: float) -> None:
        """Nothing is left until then. Never shortens an earlier word."""
        self._empty_until = max(self._empty_until, until)

    @property
    def _per_second(self) -> float:
        return self.per_minute * SHY / 60.0

    def _room_at(self, amount: float, now: float) -> float:
        """When the last 60 s will have room for it."""
        while self._cells and self._cells[0][0] + REMEMBER_S <= now:
            self._sum -= self._cells.popleft()[1]
        if not self._cells:
            self._sum = 0.0
            return now
        left = self._sum + amount - self.per_minute
        at = now
        for end, taken in self._cells:
            if left <= 0.0:
                break
            left -= taken
            at = end + REMEMBER_S
        return at


PATIENCE_S = 75.0
"""More than a minute, so that the sawtooth of a window that is counted as we count it never looks like room."""


class RateLimits:
    """Requests and tokens a minute of one server: what the user said, or else what the server's headers say."""

    def __init__(self, rpm: float, tpm: float, now: float) -> None:
        """0: unknown."""
        self._requests = Bucket(rpm, now) if rpm else None
        self._tokens = Bucket(tpm, now) if tpm else None
        self.known = bool(rpm or tpm)
        """Whether there are any: else nothing is waited for, and nothing need be counted."""
        self._sent = 0
        """Requests since there is a limit of tokens."""
        self._stated = (rpm > 0, tpm > 0)
        self._share = 1.0
        self._tight_at = now

    @property
    def per_minute(self) -> float:
        """Requests a minute that are let through in the long run, with as many tokens each as so far; inf: all."""
        requests = self._requests.per_minute if self._requests else math.inf
        if self._tokens is not None and self._sent > 0 and self._tokens.taken > 0.0:
            requests = min(requests, self._tokens.per_minute * self._sent / self._tokens.taken)
        return SHY * requests

    def wait(self, tokens: float, now: float) -> float:
        """Seconds until a request of so many tokens (prompt and `max_tokens`) may be sent; 0.0: now."""
        requests = self._requests.wait(1.0, now) if self._requests else 0.0
        return max(requests, self._tokens.wait(tokens * self._share, now) if self._tokens else 0.0)

    def describe(self, now: float) -> str:
        """For people; empty while a request of the usual size may be sent."""
        usual = self._tokens.taken / self._sent if self._tokens is not None and self._sent else 0.0
        return "waits for its rate limit" if self.wait(usual / self._share, now) > 0.0 else ""

    def take(self, tokens: float, now: float) -> None:
        """It is sent."""
        if self._requests:
            self._requests.take(1.0, now)
        if self._tokens:
            self._tokens.take(tokens * self._share, now)
            self._sent += 1

    def give_back(self, tokens: float, now: float) -> None:
        """It was not sent after all."""
        if self._requests:
            self._requests.take(-1.0, now)
        if self._tokens:
            self._tokens.take(-tokens * self._share, now)
            self._sent -= 1

    def settle(self, estimated: float, actual: float, now: float) -> None:
        """Its reply told the true number of tokens. See `Bucket.settle`."""
        if self._tokens:
            self._tokens.settle(estimated * self._share, actual, now)

    def learn(self, headers: Mapping[str, str], now: float) -> None:
        """Read an answer's headers, with names in lower case.

        A limit counts where the user stated none. Where nothing remains, nothing is sent until there is. Where more
        than half of the tokens remain for longer than a minute, the server counts fewer than were estimated, so each
        estimate counts a little less, until half of them are used.
        """
        requests, tokens = requests_quota(headers), tokens_quota(headers)
        self._requests = _adopt(self._requests, requests, self._stated[0], now)
        self._tokens = _adopt(self._tokens, tokens, self._stated[1], now)
        self.known = self._requests is not None or self._tokens is not None
        for bucket, quota, little in ((self._requests, requests, 0.0), (self._tokens, tokens, 0.01)):
            if bucket and quota.remaining is not None and quota.remaining <= little * (quota.limit or 0.0):
                bucket.empty_until(now + _until_some(quota))
        if tokens.limit and tokens.remaining is not None:
            self._weigh(tokens.remaining / tokens.limit, now)

    def _weigh(self, remaining: float, now: float) -> None:
        if remaining < 0.5:
            self._share = min(1.0, 1.5 * self._share) if now > self._tight_at + 1.0 else self._share
            self._tight_at = now
        elif now - self._tight_at > PATIENCE_S:
            self._share = max(0.05, 0.9 * self._share)
            self._tight_at += 10.0


def _adopt(bucket: Bucket | None, quota: Quota, stated: bool, now: float) -> Bucket | None:
    """The bucket from now on; one without a limit where all that is told is that nothing remains, and until when."""
    if bucket is None:
        known = quota.limit is not None or (quota.remaining == 0.0 and quota.reset is not None)
        return Bucket(quota.limit or math.inf, now) if known else None
    if quota.limit is not None and not stated:
        bucket.per_minute = quota.limit
    return bucket


def _until_some(quota: Quota) -> float:
    """Seconds until something remains again.

    Where the reset fits a bucket that refills steadily, a second's worth is soon there; where it comes earlier than
    that, it is the end of a window, and nothing comes before.
    """
    if quota.reset is None:
        return 1.0
    whole = 60.0 * (1.0 - (quota.remaining or 0.0) / quota.limit) if quota.limit else 0.0
    return 1.0 if quota.reset >= 0.9 * whole > 0.0 else min(quota.reset, 60.0)
