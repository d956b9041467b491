"""The same server behind HTTP: the real pool of the HTTP engine, on a transport that is simulated.

What the pool sends again by itself, and what it may not, shows itself in the server's log as everything else does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any

from weaverant.engines.http import Pool, endpoint
from weaverant.engines.http.client.transport import Answer, Lost
from weaverant.engines.http.pool import balance, call, members, places, pool, replica
from weaverant.errors import StepFailed
from weaverant.message import Message, Reply, Request
from weaverant.protocols import CallContext
from weaverant.testing.world.loop import VirtualClock
from weaverant.testing.world.server import ODD, Asked, Server, cost_of

ADDRESS = "http://127.0.0.1:9/v1#m"
"""Nobody is there: a request that gets past the simulated transport fails."""

STATUSES = {400: "request", 429: "rate_limit", 500: "server", 503: "server"}
FINAL = (200, 400)
"""Statuses after which the same request is never sent again."""

_TIMED: tuple[ModuleType, ...] = (pool, places, replica, members, endpoint)
_RANDOM: tuple[ModuleType, ...] = (call, balance, replica)


class Wired:
    """An engine: the pool, and the server at the other end of its wire."""

    def __init__(self, server: Server, random: Random) -> None:
        self._server = server
        self._random = random
        self._calls: dict[int, tuple[Request, CallContext]] = {}
        """By the seed, which stands in the request's body and belongs to one step."""
        self.pool = Pool([ADDRESS])

    @property
    def identity(self) -> str:
        return self.pool.identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        self._calls[request.seed] = request, ctx
        return await self.pool.generate(request, ctx)

    async def close(self) -> None:
        await self.pool.close()

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes = b"",
        *,
        seconds: float,
        most: int,
        idle: float = 0.0,
        on_data: Callable[[bytes], None] | None = None,
        permit: Callable[[], bool] | None = None,
    ) -> Answer:
        """See `Transport`."""
        if method == "GET":
            return Answer(404, {}, b"")
        request, ctx = self._calls[json.loads(body)["seed"]]
        server = self._server
        asked = server.noted(request, ctx)
        server.visited()
        try:
            async with asyncio.timeout(seconds):
                return await self._answer(request, asked)
        except TimeoutError:
            asked.end, asked.retry, asked.unsure = "timeout", True, True
            raise Lost("timeout", f"nothing came within {seconds:.0f} s", sent=True) from None
        except asyncio.CancelledError:
            if not server.dead and asked.end == "open":
                asked.end, asked.unsure = "cancelled", True
                server.counts["cancelled call"] += 1
            raise

    async def _answer(self, request: Request, asked: Asked) -> Answer:
        random, weather = self._random, self._server.weather
        await asyncio.sleep(weather.seconds * random.lognormvariate(0.0, 1.0))
        if random.random() < weather.trouble:
            return await self._trouble(request, asked)
        try:
            said = self._server.mind.say(request)
        except StepFailed as failure:
            return self._refused(400, f"{failure.text} #{asked.number}#", asked)
        asked.end, asked.billed = "reply", cost_of(request)
        return Answer(200, {"content-type": "application/json"}, _completion(said, asked))

    async def _trouble(self, request: Request, asked: Asked) -> Answer:
        what = self._random.choice(("400", "429", "500", "503", "reset", "no connection", "silence"))
        self._server.counts[f"wire: {what}"] += 1
        asked.retry, asked.unsure = True, True
        if what in ("reset", "no connection"):
            asked.end, sent = "connection", what == "reset"
            asked.billed = cost_of(request) if sent else 0.0
            raise Lost("connection", f"{what} #{asked.number}#", sent=sent)
        if what == "silence":
            await asyncio.sleep(86_400.0)
        return self._refused(int(what), f"on purpose #{asked.number}#", asked)

    def _refused(self, status: int, text: str, asked: Asked) -> Answer:
        asked.end, asked.retry = STATUSES[status], status not in FINAL
        after = {"retry-after": "2"} if status == 429 else {}
        return Answer(status, after, json.dumps({"error": {"message": text}}).encode())


def _completion(said: Message, asked: Asked) -> bytes:
    kind = asked.key[3][0]
    odd = ODD[kind % len(ODD)] if kind < 3 * len(ODD) and not said.tool_calls else ""
    calls = [
        {"id": each.id, "type": "function", "function": {"name": each.name, "arguments": each.arguments}}
        for each in said.tool_calls
    ]
    content = said.text + (odd if said.text.startswith("says") and odd != ODD[1] else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "tool_calls": calls or None}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "cost": asked.billed}
    finish = "tool_calls" if calls else "stop"
    whole = {
        "model": f"world #{asked.number}#",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }
    return json.dumps(whole).encode()


@contextmanager
def simulated(wired: Wired, clock: VirtualClock) -> Generator[None]:
    """While it lasts the pool has this transport, this clock, and chances that are drawn from a seed."""
    before = [(module, name, vars(module)[name]) for module, name in _places()]
    chances = Random(7)
    for module in _TIMED:
        setattr(module, "time", clock)  # noqa: B010
    for module in _RANDOM:
        setattr(module, "random", chances)  # noqa: B010
    setattr(endpoint, "acquire", lambda _: wired)  # noqa: B010 # pyright: ignore
    setattr(endpoint, "release", _released)  # noqa: B010
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def _places() -> list[tuple[ModuleType, str]]:
    timed = [(module, "time") for module in _TIMED]
    return [*timed, *((module, "random") for module in _RANDOM), (endpoint, "acquire"), (endpoint, "release")]


async def _released(transport: object) -> None:
    """Nothing is held."""
