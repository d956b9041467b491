"""What answers in a simulated world: a model whose replies depend on the request alone, and a network that does not.

Everything that it was asked and that it answered is in its log, with a number: the bill, which the journal of a run
must agree with. The number travels in the reply (`Reply.model`) or in the failure's text.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, cast

from msgspec import Struct

from weaverant.errors import StepFailed, Unavailable
from weaverant.message import Message, Reply, Request, Usage, digest
from weaverant.protocols import CallContext
from weaverant.testing.weaves import Moody

UNIT = 1 / 1024
"""Dollars: sums of multiples are exact."""

BOUND = 8 * UNIT
"""The most that a request costs."""

CallKey = tuple[str, str, int, bytes]
"""A step as a server can know it: task, branch, occurrence, what was asked."""


class Asked(Struct):
    """One request that was sent."""

    number: int
    life: int
    key: CallKey
    billed: float = 0.0
    end: str = "open"
    """`reply`, the kind of a failure, `cancelled`, or `open` where the process died before."""
    unsure: bool = False
    """Whether whoever asked was not told what it cost."""
    retry: bool = False
    """Whether the same request may be sent again by itself, unrecorded."""
    temperature: float | None = None


class Weather(Struct, frozen=True):
    """What the network is like in one life."""

    seconds: float = 0.02
    """Median of a call's latency."""
    trouble: float = 0.0
    """Share of calls that fail, are slow or come back as nonsense."""
    outage: float = 0.0
    """Share of calls that find nobody."""
    slots: int = 1_000


class Server:
    """An engine. `begin` starts a life with its own weather."""

    identity = "simulated world"

    def __init__(self, random: Random) -> None:
        self.log: list[Asked] = []
        self.counts: Counter[str] = Counter()
        self.budgeted = False
        self.dead = False
        self.visit: Callable[[], None] | None = None
        """Called once, while the next request is in flight."""
        self._random = random
        self.mind = Moody(0)
        self.weather = Weather()
        self.life = 0
        self._slots = asyncio.Semaphore(1)
        self.inside = 0
        """Calls in flight."""

    def begin(self, life: int, weather: Weather) -> None:
        self.life, self.weather = life, weather
        self.dead, self.inside = False, 0
        self._slots = asyncio.Semaphore(weather.slots)

    def unbounded(self, request: Request) -> str:
        """See `Costly`."""
        return ""

    def worst(self, request: Request) -> float:
        """See `Priced`."""
        return BOUND

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self.inside += 1
        try:
            if ctx.turn is not None:
                ctx.turn.waiting = True
            async with self._slots:
                if ctx.purse is not None:
                    await ctx.purse.afford(BOUND)
                if self._random.random() < self.weather.outage:
                    self.counts["nobody there"] += 1
                    raise Unavailable("connection", "nobody is there")
                if ctx.turn is not None:
                    ctx.turn.waiting = False
                return await self._serve(request, ctx)
        finally:
            self.inside -= 1

    async def close(self) -> None:
        """Nothing is held."""

    def noted(self, request: Request, ctx: CallContext) -> Asked:
        """A request has been sent."""
        key = ctx.task, ctx.path, ctx.occurrence, content_of(request)
        asked = Asked(len(self.log), self.life, key, temperature=request.sampling.temperature)
        self.log.append(asked)
        return asked

    def visited(self) -> None:
        """A request is in flight."""
        visit, self.visit = self.visit, None
        if visit is not None:
            visit()

    async def _serve(self, request: Request, ctx: CallContext) -> Reply:
        asked = self.noted(request, ctx)
        self.visited()
        worked = False
        try:
            await self._travel(asked)
            worked = True
            asked.billed = cost_of(request)
            return self._answer(request, asked)
        except StepFailed as failure:
            asked.end = failure.kind
            raise
        except asyncio.CancelledError:
            if not self.dead and asked.end == "open":
                await self._cut_off(asked, request)
            raise
        finally:
            if not worked and asked.end == "open" and not self.dead:
                asked.end = "error"

    async def _cut_off(self, asked: Asked, request: Request) -> None:
        """Cancelled: the server may go on with the work, and bill it; letting go may take a while."""
        asked.end, asked.unsure = "cancelled", True
        self.counts["cancelled call"] += 1
        if self._random.random() < 0.5:
            asked.billed = cost_of(request)
        if self._random.random() < 0.1:
            await asyncio.sleep(1.0)

    async def _travel(self, asked: Asked) -> None:
        """The way there and back, on which anything may happen."""
        weather, random = self.weather, self._random
        await asyncio.sleep(weather.seconds * random.lognormvariate(0.0, 1.0))
        if random.random() < weather.trouble:
            name, trouble = random.choice(TROUBLES)
            self.counts[name] += 1
            await trouble(self, asked)

    def _answer(self, request: Request, asked: Asked) -> Reply:
        """What it says is a function of the request with its seed."""
        usage = Usage(7, 3, cost=asked.billed)
        try:
            said = self._odd(self.mind.say(request), request)
        except StepFailed as failure:
            raise StepFailed(failure.kind, f"{failure.text} #{asked.number}#", failure.detail, usage) from None
        asked.end = "reply"
        return self._garbled(Reply(said, usage, f"world #{asked.number}#"), asked)

    def _odd(self, message: Message, request: Request) -> Message:
        """Some plain replies are giant, or hold what JSON and UTF-8 do not like."""
        kind = digest(message.text.encode())[0]
        if message.tool_calls or request.output is not None or kind > 3 * len(ODD) - 1:
            return message
        self.counts["odd reply"] += 1
        return Message("assistant", message.text + ODD[kind % len(ODD)])

    def _garbled(self, reply: Reply, asked: Asked) -> Reply:
        if self._random.random() >= self.weather.trouble / 3:
            return reply
        name = self._random.choice(tuple(GARBLED))
        self.counts[name] += 1
        asked.end, asked.unsure = "engine", True
        return cast("Reply", GARBLED[name](reply))

    # Troubles

    async def _fail(self, asked: Asked) -> None:
        kind = self._random.choice(("timeout", "rate_limit", "server", "connection", "request", "context", "output"))
        usage = self._random.choice((None, Usage(cost=0.0), Usage(cost=BOUND / 2, unsure=BOUND / 2)))
        if usage is None or usage.cost:
            asked.unsure = True
            asked.billed = self._random.choice((0.0, BOUND / 2))
        raise StepFailed(kind, f"on purpose #{asked.number}#", {"status": 500}, usage)

    async def _break(self, asked: Asked) -> None:
        asked.end, asked.unsure = "error", True
        raise self._random.choice(ERRORS)(f"broken #{asked.number}#")

    async def _dawdle(self, asked: Asked) -> None:
        await asyncio.sleep(self._random.choice((5.0, 600.0)))

    async def _hang(self, asked: Asked) -> None:
        await asyncio.sleep(86_400.0)
        asked.unsure = True
        raise StepFailed("timeout", f"nothing came for a day #{asked.number}#")

    async def _lie(self, asked: Asked) -> None:
        """A failure with a usage that is none."""
        asked.unsure = True
        raise StepFailed("server", f"told nonsense #{asked.number}#", None, cast("Usage", "much"))


TROUBLES: tuple[tuple[str, Callable[[Server, Asked], Any]], ...] = (
    ("failed call", Server._fail),  # pyright: ignore[reportPrivateUsage]
    ("failed call", Server._fail),  # pyright: ignore[reportPrivateUsage]
    ("engine's exception", Server._break),  # pyright: ignore[reportPrivateUsage]
    ("slow reply", Server._dawdle),  # pyright: ignore[reportPrivateUsage]
    ("hung reply", Server._hang),  # pyright: ignore[reportPrivateUsage]
    ("usage that is none", Server._lie),  # pyright: ignore[reportPrivateUsage]
)
ODD = ("\0", "\ud800", "giant " * 12_000, "\u2028\U0001f9f5")
"""What some replies end in."""

ERRORS = (ValueError, RuntimeError, OSError, AssertionError, SystemExit, asyncio.CancelledError, TimeoutError)

GARBLED: dict[str, Callable[[Reply], object]] = {
    "no reply at all": lambda reply: None,
    "a reply of another type": lambda reply: {"text": reply.text, "number": reply.model},
    "a message that is none": lambda reply: Reply(cast("Message", reply.text), reply.usage, reply.model),
    "a reply without usage": lambda reply: Reply(reply.message, cast("Usage", None), reply.model),
}

_number = re.compile(r"#(\d+)#")


def number_in(text: object) -> int | None:
    """The number of the request in what came of it."""
    found = _number.search(text) if isinstance(text, str) else None
    return int(found[1]) if found else None


def content_of(request: Request) -> bytes:
    """What was asked: the seed apart, which a retry changes."""
    return digest(repr((request.agent, request.messages)).encode(errors="surrogatepass"))


def cost_of(request: Request) -> float:
    """Dollars; a function of the request, up to `BOUND`."""
    return UNIT * (1 + content_of(request)[0] % 8)
