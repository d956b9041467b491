"""What the mock server does with each request: count, limit, queue, work, bill, answer."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from functools import partial
from typing import Any

import msgspec

from weaverant.message import digest
from weaverant.testing import metrics
from weaverant.testing.answer import Answer, Play
from weaverant.testing.batches import Batches
from weaverant.testing.bill import Bill
from weaverant.testing.completions import Call, estimate
from weaverant.testing.connection import Connection, Exchange, Route
from weaverant.testing.limits import Limits, Refusal
from weaverant.testing.scenarios import SCENARIOS, find
from weaverant.testing.settings import Settings
from weaverant.testing.slots import Slots
from weaverant.testing.stream import events_of, send

_COUNTS = ("total", "answered", "abandoned", "connections", "in_flight", "streams")


class Job(msgspec.Struct, eq=False):
    """A call on its way through the server."""

    call: Call
    answer: Answer | None = None
    work: asyncio.Task[None] | asyncio.Handle | None = None
    """What will go on with it; None while it waits for a place."""
    freed: bool = False
    """Whether it has given up its place, or the wait for one."""


class Service:
    """Answers exchanges. `routes` may be added to: a path's beginning, and who answers there."""

    def __init__(self, settings: Settings) -> None:
        find(settings.scenario)
        self.settings = settings
        self.bill = Bill()
        self.routes: dict[str, Route] = {
            "/stats": lambda exchange: exchange.json(self.stats()),
            "/bill": lambda exchange: exchange.json(self.bill.items),
            "/reset": self._reset,
            "/control": self._control,
            "/metrics": self._metrics,
            **Batches(self.answer).routes(),
        }
        self._slots: Slots[Job] = Slots(settings.slots, self._start)
        self._limits = Limits(settings)
        self._connections: set[Connection] = set()
        self._forget()

    def connection(self) -> Connection:
        return Connection(self.serve, self._connections)

    def serve(self, exchange: Exchange) -> None:
        path = exchange.path
        if path == "/v1/chat/completions":
            self._chat(exchange)
        elif path == "/v1/models":
            names = {"no-models": [], "two-models": ["mock", "other"]}.get(exchange.scenario, ["mock"])
            exchange.json({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})
        else:
            found = next((route for start, route in self.routes.items() if path.startswith(start)), None)
            found(exchange) if found else exchange.error(404, f"there is nothing at {path!r}")

    def stats(self) -> dict[str, Any]:
        """See `MockServer.stats`."""
        return {
            **self._counts,
            "in_flight_max": self._in_flight_max,
            "running": self._slots.running,
            "waiting": self._slots.waiting,
            "busy": self._slots.busy,
            "distinct": len(self._bodies),
            "most_repeated": max(self._bodies.values(), default=0),
            "models": self._models,
            "statuses": self._statuses,
            "tokens": self._limits.admitted,
            "billed": self.bill.dollars,
        }

    def answer(self, exchange: Exchange, raw: bytes, share: float) -> tuple[int, bytes]:
        """The status and the body that a call with this body would get, worked out at once and billed at that share
        of the price: for requests that hold many calls. It is in no count of calls."""
        key = digest(raw)
        self._bodies[key] += 1
        call = Call(exchange, raw, _decode(raw), key, self._bodies[key], self.settings)
        answer = self._answer(call)
        self._charge(call, answer, share)
        return answer.status, _sent(answer)

    # A call's way

    def _chat(self, exchange: Exchange) -> None:
        try:
            body = _decode(exchange.body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            exchange.error(400, f"the body is no JSON object: {error}")
            return
        call = self._counted(exchange, body)
        job = Job(call)
        exchange.on_left = partial(self._left, job)
        if self.settings.reject and self._slots.full:
            refusal = Refusal("calls at once", self.settings.slots, math.inf)
        else:
            refusal = self._limits.admit(estimate(call))
        if refusal is None:
            self._slots.enter(job)
        else:
            self._reply(call, _refused(refusal))

    def _counted(self, exchange: Exchange, body: dict[str, Any]) -> Call:
        key = digest(exchange.body)
        counts = self._counts
        counts["connections"] += not exchange.connection.used
        exchange.connection.used = True
        counts["total"] += 1
        counts["in_flight"] += 1
        counts["streams"] += body.get("stream") is True
        self._in_flight_max = max(self._in_flight_max, counts["in_flight"])
        self._bodies[key] += 1
        self._models[str(body.get("model", ""))] += 1
        return Call(exchange, exchange.body, body, key, self._bodies[key], self.settings)

    def _answer(self, call: Call) -> Answer:
        model = str(call.body.get("model", ""))
        chosen = call.exchange.scenario or call.exchange.headers.get("x-scenario")
        try:
            return find(chosen or (model if model.partition("*")[0] in SCENARIOS else self.settings.scenario))(call)
        except ValueError as error:
            return Answer(status=400, body=msgspec.json.encode({"error": {"message": str(error)}}))

    def _start(self, job: Job) -> None:
        """The job has its place: the work begins."""
        call, loop = job.call, asyncio.get_running_loop()
        job.answer = answer = self._answer(call)
        seconds = self.settings.seconds(call.digest)
        streams = call.body.get("stream") is True and answer.completion is not None and answer.body is None
        if streams and (answer.play is None or answer.ending):
            job.work = loop.create_task(self._played(job, self._stream(call, answer, seconds)))
        elif seconds:
            job.work = loop.call_later(seconds, self._worked, job)
        else:
            job.work = loop.call_soon(self._worked, job)

    def _worked(self, job: Job) -> None:
        """The work is done: it is billed, and the reply goes out if anybody is there."""
        call, answer = job.call, job.answer
        assert answer is not None
        self._charge(call, answer)
        if call.exchange.left:
            self._free(job)
        elif answer.play is not None:
            job.work = asyncio.get_running_loop().create_task(self._played(job, answer.play))
        else:
            self._reply(call, answer)
            self._free(job)

    def _reply(self, call: Call, answer: Answer) -> None:
        call.exchange.reply(answer.status, _sent(answer), {**self._limits.headers(), **answer.headers}, answer.kind)
        self._over(call.exchange)

    def _stream(self, call: Call, answer: Answer, seconds: float) -> Play:
        """A stream is billed whole when it begins: who leaves it early has caused the work."""
        assert answer.completion is not None
        self._charge(call, answer)
        options: dict[str, Any] = call.body.get("stream_options") or {}
        events = events_of(answer.completion, options.get("include_usage") is True)
        headers = self._limits.headers()
        return lambda exchange: send(exchange, events, seconds, answer.ending, headers)

    async def _played(self, job: Job, play: Play) -> None:
        try:
            await play(job.call.exchange)
        finally:
            if not job.call.exchange.left:
                self._over(job.call.exchange)
            self._free(job)

    def _left(self, job: Job, cut: bool) -> None:
        """The connection broke; `cut` by the server itself. Work that will be billed goes on to its end."""
        self._counts["abandoned"] += not cut
        self._over(job.call.exchange)
        pays = self.settings.price and isinstance(job.work, asyncio.Handle)
        if job.work is not None and not pays:
            job.work.cancel()
        if not pays:
            self._free(job)

    def _over(self, exchange: Exchange) -> None:
        """Count a call that has come to its end, one way or the other."""
        exchange.on_left = None
        self._counts["in_flight"] -= 1
        self._counts["answered"] += exchange.status == 200 and exchange.ended
        if exchange.status:
            self._statuses[str(exchange.status)] += 1

    def _free(self, job: Job) -> None:
        if not job.freed:
            job.freed = True
            self._slots.leave(job)

    def _charge(self, call: Call, answer: Answer, share: float = 1.0) -> None:
        if answer.completion is not None:
            model = str(call.body.get("model", ""))
            self.bill.add(call.digest, model, answer.completion["usage"], self.settings, share)

    # Other routes

    def _forget(self) -> None:
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._in_flight_max = 0
        self._models: Counter[str] = Counter()
        self._statuses: Counter[str] = Counter()
        self._bodies: Counter[bytes] = Counter()
        self._limits.admitted = 0
        self.bill.items.clear()

    def _reset(self, exchange: Exchange) -> None:
        in_flight = self._counts["in_flight"]
        self._forget()
        self._counts["in_flight"] = self._in_flight_max = in_flight
        exchange.json({})

    def _control(self, exchange: Exchange) -> None:
        """Change what the body names."""
        try:
            changes = _decode(exchange.body)
            settings = msgspec.convert({**msgspec.structs.asdict(self.settings), **changes}, Settings)
            find(settings.scenario)
        except (msgspec.MsgspecError, ValueError) as error:
            exchange.error(400, str(error))
            return
        self.settings = settings
        self._limits.change(settings)
        self._slots.size = settings.slots
        self._slots.fill()
        exchange.json(settings)

    def _metrics(self, exchange: Exchange) -> None:
        kind, slots = self.settings.metrics, self._slots
        if not kind:
            exchange.error(404, "this server has no metrics")
            return
        text = metrics.exposition(kind, slots.running, slots.waiting, slots.size)
        exchange.reply(200, text.encode(), kind=metrics.TEXT)


_decode = msgspec.json.Decoder(dict[str, Any]).decode


def _sent(answer: Answer) -> bytes:
    return msgspec.json.encode(answer.completion) if answer.body is None else answer.body


def _refused(refusal: Refusal) -> Answer:
    text = f"Rate limit reached for {refusal.what}: limit {refusal.limit}."
    error = {"message": text, "type": refusal.what, "code": "rate_limit_exceeded"}
    return Answer(status=429, headers=refusal.headers, body=msgspec.json.encode({"error": error}))
