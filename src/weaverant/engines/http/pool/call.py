"""One call of the engine: its requests so far, what they cost, and what is left of its time."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from weaverant.engines.http.attempt import Trouble
from weaverant.errors import Misdirected, StepFailed, Unavailable
from weaverant.message import Message, Reply, Request, TextPart, Usage
from weaverant.protocols import CallContext
from weaverant.step import Turn

if TYPE_CHECKING:
    from weaverant.engines.http.pool.replica import Place, Replica

LONGEST_WAIT_S = 30.0

UNBOUNDED_TOKENS = 500
"""Tokens a reply is taken to have, for pacing only, where the agent has no `max_tokens`; corrected once it came."""


_MISLED = (
    "no call has been replied to: the key, the address (often .../v1) or the model's name (after #) seems to be wrong; "
    "put it right and resume"
)


class Call(Struct, eq=False):
    """What a pool knows of a call while it works on it."""

    request: Request
    ctx: CallContext
    since: float
    deadline: float = math.inf
    """Until the first request is sent."""
    requests: int = 0
    barred: bool = False
    """The server does not take the key."""
    misled: bool = False
    """Where no call was ever replied to, it got what a wrong key or address gets."""
    sent: bool = False
    """Whether a server may have worked on it."""
    failures: int = 0
    """Requests that failed by the fault of a server or the network."""
    retries: int = 0
    """Those of them that count against the option `retries`."""
    tried: frozenset[Replica] = frozenset()
    """Replicas that failed it."""
    last: Trouble | None = None
    cost: float = 0.0
    """Dollars that are known: of servers paid by the hour."""
    unsure: float = 0.0
    """The most that requests may cost whose bill nobody knows, in dollars."""
    passed: int = 0
    """How many calls were given a place in its turn, because they were at home there."""
    future: asyncio.Future[Place] | asyncio.Future[None] | None = None
    """What it waits for: a place, or the time of its next try."""
    estimated: float = -1.0

    @property
    def agent(self) -> str:
        return self.request.agent

    @property
    def tokens(self) -> float:
        """See `estimate`: worked out only where a server limits tokens."""
        if self.estimated < 0.0:
            self.estimated = estimate(self.request)
        return self.estimated

    @property
    def waiting(self) -> bool:
        return self.future is not None and not self.future.done()

    @property
    def turn(self) -> Turn | None:
        """Where it says that it waits. A stop takes such a call back, to be asked again, so one that has cost something
        says nothing: that would be forgotten."""
        return None if self.unsure or self.cost else self.ctx.turn

    def waited_until(self, now: float) -> None:
        """Until then it waited: for a place, for money, for the journal to set that aside. No part of its latency."""
        if self.ctx.turn is not None:
            self.ctx.turn.waited = now - self.since

    def answered(self, reply: Reply) -> Reply:
        """The reply, with what all requests of the call used."""
        usage = reply.usage
        if self.requests == usage.requests and not self.unsure and not self.cost:
            return reply
        usage = msgspec.structs.replace(
            usage,
            requests=self.requests,
            cost=usage.cost + self.cost + self.unsure,
            unsure=usage.unsure + self.unsure,
        )
        return msgspec.structs.replace(reply, usage=usage)

    def failed(self, kind: str, text: str, status: int = 0) -> StepFailed:
        """The call's failure."""
        if self.requests > 1:
            text += f"; tried {self.requests} times"
        detail = {"requests": self.requests, "status": status}
        usage = Usage(requests=self.requests, cost=self.cost + self.unsure, unsure=self.unsure)
        return StepFailed(kind, text, detail, usage)

    def ended(self, trouble: Trouble, why: str, away: bool) -> StepFailed:
        """The call's failure by its last trouble; `Unavailable` where no server can have worked on it, a hedge's
        either, and all are away, take no such key, or are none."""
        failure = trouble.failure
        ended = self.failed(failure.kind, failure.text, trouble.status)
        ended.text += why
        if self.sent or self.unsure or not (away or self.barred):
            return ended
        if self.misled:
            ended.text += f"; {_MISLED}"
        return (Misdirected if self.misled else Unavailable)(ended.kind, ended.text, ended.detail, ended.usage)


def backoff(failures: int, first: float) -> float:
    """Seconds until the next try; `first` at most after the first failure. The chance in it keeps what failed together
    from coming back together."""
    longest = _longest(failures, first)
    return random.uniform(longest / 2, longest)


def patience(retries: int, first: float) -> float:
    """Seconds that a call with so many retries waits for the next try, all of them together, on average."""
    return 0.75 * sum(_longest(failures, first) for failures in range(1, retries + 1))


def _longest(failures: int, first: float) -> float:
    return min(LONGEST_WAIT_S, first * 2.0 ** min(30, failures - 1))


def estimate(request: Request) -> float:
    """Tokens of the prompt, at four characters each, and of the longest reply: as servers count at admission."""
    sampling = request.sampling
    reply = UNBOUNDED_TOKENS if sampling.max_tokens is None else sampling.max_tokens
    return sum(map(_characters, request.messages)) / 4 + reply


def _characters(message: Message) -> int:
    content = message.content
    if isinstance(content, str):
        return len(content)
    return sum(len(part.text) if isinstance(part, TextPart) else 0 for part in content)
