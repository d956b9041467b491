"""Calls that wait to become a batch: when it is time, and how many go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from msgspec import Struct

from weaverant.engines.http.batch.calls import Call


class Limits(Struct, frozen=True):
    """What a server takes."""

    lines: int = 50_000
    """Of one batch."""
    size: int = 190_000_000
    """Bytes of one batch. OpenAI takes 200 MB; the rest is for what surrounds the requests."""
    rest: float = 60.0
    """Seconds after a batch was over the account's limit of enqueued tokens, with no other of ours under way."""


OPENAI = Limits()


class Waiting:
    """`send` gets the calls of each batch, `seconds` after the first of them came, or once there is no room for more.

    Near the account's limit batches are smaller, and go one after the other: `going` says whether one is under way.
    """

    def __init__(
        self, seconds: float, send: Callable[[list[Call]], None], going: Callable[[], bool], limits: Limits = OPENAI
    ) -> None:
        self.crowded = False
        self._seconds = seconds
        self._send = send
        self._going = going
        self._calls: dict[str, Call] = {}
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._limits = limits
        self._most_lines = limits.lines
        self._not_before = 0.0

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        self._calls[call.identity] = call
        self._bytes += call.size
        call.waits(True)
        if len(self._calls) >= self._most_lines or self._bytes >= self._limits.size:
            self._due()
        elif self._timer is None:
            self._in(self._seconds)

    def drop(self, call: Call) -> None:
        if self._calls.pop(call.identity, None) is not None:
            self._bytes -= call.size
            call.waits(False)

    def refused(self, lines: int) -> None:
        """A batch with so many lines was over the account's limit, by itself if none of ours is under way."""
        self.crowded = True
        if not self._going():
            self._not_before = time.monotonic() + self._limits.rest
            self._most_lines = max(1, lines // 2)

    def ended(self, accepted: bool) -> None:
        """A batch has ended: there may be room for the next."""
        if accepted:
            self._most_lines = min(self._limits.lines, self._most_lines + 1 + self._most_lines // 4)
        if self.crowded:
            self._in(0.0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _in(self, seconds: float) -> None:
        self.close()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._due) if self._calls else None

    def _due(self) -> None:
        left = self._not_before - time.monotonic()
        if left > 0:
            self._in(left)
            return
        if self.crowded and self._going():
            self._in(self._limits.rest)
            return
        calls = self._first()
        for call in calls:
            self.drop(call)
        if calls:
            self._send(calls)
        self._in(self._seconds)

    def _first(self) -> list[Call]:
        """Those that have waited longest, as many as one batch may have."""
        calls: list[Call] = []
        size = 0
        for call in self._calls.values():
            size += call.size
            if calls and (len(calls) >= self._most_lines or size > self._limits.size):
                break
            calls.append(call)
        return calls
