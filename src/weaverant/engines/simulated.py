"""A pretended server: its latency, its slots and its queue are real, its words are not and say so.

For sizing a run, measuring the runtime and practising faults without a model. The reply and the time it takes
are functions of (request, seed); only how long a call queues depends on the others.
"""

from __future__ import annotations

import asyncio
import math
import time
from asyncio import Future, TimerHandle
from hashlib import shake_128
from heapq import heapify, heappop, heappush
from typing import Any, cast

import msgspec

from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request, Usage, assistant
from weaverant.protocols import CallContext
from weaverant.step import Turn

MARK = "[simulated]"

_WORDS = """
a able after again all along also an and answer any as ask at back be before begin both but
by can case change clear come count day do down each end even every far few find first for form from give go
good great hand have here high how if in into is it just keep kind know
"""
_BY_BYTE = (_WORDS.split() * 5)[:256]


class Simulated:
    """A server with `slots` places, for which the oldest row's calls go first.

    A call holds its place for `latency` seconds (the median; times e**(jitter * normal)) plus `tokens` over
    `tokens_per_s` (0: all tokens come at once), then gives `tokens` words, or fails with kind `server` in a
    share `failures` of the (request, seed) pairs. A request with an output schema gets JSON that fits its plain
    features (types, enum, properties, lengths, number limits). Prompt tokens are characters / 4.
    """

    def __init__(
        self,
        latency: float = 0.5,
        slots: int = 64,
        tokens: int = 64,
        tokens_per_s: float = 0.0,
        jitter: float = 0.3,
        seed: int = 0,
        failures: float = 0.0,
        parts: int = 1,
    ) -> None:
        """With `parts` it is one of so many that make up the server, with its part of the slots, and one at least."""
        _check(0, latency=latency, tokens_per_s=tokens_per_s, jitter=jitter, failures=failures)
        _check(1, slots=slots, tokens=tokens)
        self._latency = latency
        self._tokens = tokens
        self._token_time = 1.0 / tokens_per_s if tokens_per_s else 0.0
        self._jitter = jitter
        self._failures = failures
        self._salt = f"{seed}\0".encode()
        self._identity = f"simulated:tokens={tokens},seed={seed},failures={failures:g}"
        self._queue = _Slots(max(1, slots // parts))

    @classmethod
    def open(cls, spec: str, parts: int = 1) -> Simulated:
        """`latency=0.2,slots=64,tokens=200`, any parameter by name but `parts`; empty for the defaults."""
        options: dict[str, Any] = {}
        for item in filter(None, spec.split(",")):
            name, _, text = item.partition("=")
            kind = _OPTIONS.get(name.strip())
            if kind is None:
                raise UserError(
                    f"simulated: has no option {name.strip()!r}; it has {', '.join(_OPTIONS)}. "
                    "Example: simulated:latency=0.2,slots=64,tokens=200"
                )
            try:
                options[name.strip()] = kind(text)
            except ValueError:
                raise UserError(
                    f"simulated: {name.strip()!r} is {text!r}; expected a number like {name.strip()}=1"
                ) from None
        return cls(**options, parts=parts)

    @property
    def identity(self) -> str:
        return self._identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        limit = request.sampling.max_tokens
        tokens = self._tokens if limit is None else min(self._tokens, limit)
        drawn = self._draw(request, tokens)
        seconds = self._seconds(drawn, tokens)
        if seconds:
            call = _Call(asyncio.get_running_loop().create_future(), seconds, ctx.order, ctx.turn or Turn())
            self._queue.enter(call)
            try:
                await call.done
            except asyncio.CancelledError:
                self._queue.leave(call)
                raise
        if self._failures and int.from_bytes(drawn[8:12]) < self._failures * 2**32:
            raise StepFailed("server", f"{MARK} the pretended server failed, as it was asked to")
        return self._reply(request, drawn[_HEAD:], tokens)

    async def close(self) -> None:
        """Calls that wait fail with kind `connection`."""
        self._queue.close()

    def _draw(self, request: Request, tokens: int) -> bytes:
        """All the chance of one reply: 12 bytes for its time and luck, then one for each word."""
        state = shake_128(self._salt)
        for message in request.messages:
            state.update(message.digest)
        state.update(f"{request.agent}\0{request.model}\0{request.seed}".encode(errors="surrogatepass"))
        return state.digest(_HEAD + max(tokens, 64))

    def _seconds(self, drawn: bytes, tokens: int) -> float:
        seconds = self._latency
        if self._jitter and seconds:
            first = (int.from_bytes(drawn[0:4]) + 1) / 2**32
            second = int.from_bytes(drawn[4:8]) / 2**32
            normal = math.sqrt(-2.0 * math.log(first)) * math.cos(2.0 * math.pi * second)
            seconds *= math.exp(self._jitter * normal)
        return seconds + tokens * self._token_time

    def _reply(self, request: Request, drawn: bytes, tokens: int) -> Reply:
        if request.output is not None:
            text = msgspec.json.encode(example(request.output.schema, drawn)).decode()
        elif tokens > 0:
            text = " ".join((MARK, *map(_BY_BYTE.__getitem__, drawn[: tokens - 1])))
        else:
            text = MARK
        size = sum(len(message.text) for message in request.messages)
        usage = Usage(prompt_tokens=size // 4, completion_tokens=tokens)
        cut = tokens < self._tokens and request.output is None
        return Reply(assistant(text), usage, "simulated", "length" if cut else "stop")


_HEAD = 12
_OPTIONS: dict[str, type[int] | type[float]] = {
    "latency": float,
    "slots": int,
    "tokens": int,
    "tokens_per_s": float,
    "jitter": float,
    "seed": int,
    "failures": float,
}


def _check(least: int, **numbers: float) -> None:
    for name, number in numbers.items():
        if not least <= number < math.inf:
            raise UserError(f"simulated: {name!r} is {number}; expected a number from {least} on")


class _Call:
    """A call with a place (`timer` set) or in the queue."""

    __slots__ = ("came", "done", "order", "seconds", "timer", "turn")

    def __init__(self, done: Future[None], seconds: float, order: int, turn: Turn) -> None:
        self.done = done
        self.seconds = seconds
        self.order = order
        self.turn = turn
        self.came = 0.0
        self.timer: TimerHandle | None = None


class _Slots:
    """Places and one queue: the oldest row first, and of equally old ones who came first. Only calls that have a place
    have a timer."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._waiting: list[tuple[int, int, _Call]] = []
        self._count = 0
        self._gone = 0
        """Calls in the queue that were given up."""
        self._served: set[_Call] = set()

    def enter(self, call: _Call) -> None:
        if self._free:
            self._free -= 1
            self._serve(call)
        else:
            call.turn.waiting = True
            call.came = time.monotonic()
            self._count += 1
            heappush(self._waiting, (call.order, self._count, call))

    def leave(self, call: _Call) -> None:
        """The caller gave up. A call in the queue stays there, cancelled, and is passed over."""
        if call.timer is not None:
            call.timer.cancel()
            self._release(call)
        elif call.turn.waiting:
            self._gone += 1
            if self._gone > len(self._waiting) // 2:
                self._waiting = [entry for entry in self._waiting if not entry[2].done.done()]
                heapify(self._waiting)
                self._gone = 0

    def close(self) -> None:
        calls = [*self._served, *(call for _, _, call in self._waiting)]
        self._waiting.clear()
        for call in calls:
            self.leave(call)
            if not call.done.done():
                call.done.set_exception(StepFailed("connection", f"{MARK} the engine was closed"))

    def _serve(self, call: _Call) -> None:
        if call.turn.waiting:
            call.turn.waiting = False
            call.turn.waited = time.monotonic() - call.came
        call.timer = call.done.get_loop().call_later(call.seconds, self._finish, call)
        self._served.add(call)

    def _finish(self, call: _Call) -> None:
        if not call.done.done():
            call.done.set_result(None)
        self._release(call)

    def _release(self, call: _Call) -> None:
        call.timer = None
        self._served.discard(call)
        while self._waiting:
            _, _, following = heappop(self._waiting)
            if not following.done.done():
                return self._serve(following)
            self._gone -= 1
        self._free += 1
        return None


def example(schema: dict[str, Any], drawn: bytes) -> Any:
    """A value that fits the plain features of a JSON schema; `drawn` is the chance it is made from."""
    return _Example(schema, drawn).value(schema)


class _Example:
    def __init__(self, root: dict[str, Any], drawn: bytes) -> None:
        self._root = root
        self._drawn = drawn
        self._used = 0

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return schema["enum"][self._byte() % len(schema["enum"])]
        for union in ("anyOf", "oneOf", "allOf"):
            if union in schema:
                options = schema[union]
                return self.value(options[-1 if depth > 8 else self._byte() % len(options)], depth + 1)
        kinds = schema.get("type", "object" if "properties" in schema else "string")
        return self._of_type(kinds if isinstance(kinds, str) else kinds[0], schema, depth)

    def _of_type(self, kind: str, schema: dict[str, Any], depth: int) -> Any:
        if kind == "object":
            properties = cast("dict[str, Any]", schema.get("properties", {}))
            required = schema.get("required", []) if depth > 8 else properties
            return {name: self.value(properties.get(name, {}), depth + 1) for name in required}
        if kind == "array":
            size = schema.get("minItems", 0 if depth > 8 else 1)
            return [self.value(schema.get("items", {}), depth + 1) for _ in range(size)]
        if kind in ("integer", "number"):
            return self._number(schema, kind == "integer")
        if kind == "boolean":
            return self._byte() % 2 == 0
        return None if kind == "null" else self._text(schema)

    def _number(self, schema: dict[str, Any], whole: bool) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0 if whole else 0.0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 10))
        if not whole:
            return low + (high - low) * (1 + self._byte()) / 257
        low = math.ceil(low) + ("minimum" not in schema and low == schema.get("exclusiveMinimum"))
        high = math.floor(high) - ("maximum" not in schema and high == schema.get("exclusiveMaximum"))
        return low + self._byte() % max(1, high - low + 1)

    def _text(self, schema: dict[str, Any]) -> str:
        words = " ".join((MARK, *(_BY_BYTE[self._byte()] for _ in range(4))))
        least = schema.get("minLength", 0)
        return (words + " ." * least)[: max(schema.get("maxLength", len(words)), least)]

    def _byte(self) -> int:
        self._used += 1
        return self._drawn[(self._used - 1) % len(self._drawn)]

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        seen = 0
        while "$ref" in schema and seen < 32:
            found: Any = self._root
            for part in filter(None, schema["$ref"].removeprefix("#").split("/")):
                found = found[part.replace("~1", "/").replace("~0", "~")]
            schema, seen = found, seen + 1
        return schema
