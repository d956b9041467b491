"""One model at one server: turns a request into one HTTP request, and what comes back into a reply or trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from msgspec.structs import replace

from weaverant.engines.http.address import Address, find_key
from weaverant.engines.http.attempt import HELD, Attempt, Trouble
from weaverant.engines.http.chat import wire
from weaverant.engines.http.chat.completion import told
from weaverant.engines.http.chat.stream import Stream
from weaverant.engines.http.chat.structured import Schemas
from weaverant.engines.http.chat.wire import Bodies
from weaverant.engines.http.client.transport import Answer, Held, Lost, Transport, acquire, choose, release
from weaverant.engines.http.key import Key
from weaverant.engines.http.listing import NotListed, list_models
from weaverant.engines.http.money.prices import Price
from weaverant.engines.http.money.tariff import find_tariff
from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request
from weaverant.protocols import Permit

GATEWAY = frozenset((408, 502, 504))
"""Statuses of a gateway that gave up on a server which may go on working, and bill."""

MOST_REPLY = 64_000_000
"""Bytes of an answer, after decompression."""

MOST_METRICS = 4_000_000
"""Bytes of a page of metrics."""

LONGEST_PAUSE_S = 366 * 86_400.0
"""Seconds that a `Retry-After` may ask for: more is no end of a run that anybody waits for."""


class Endpoint:
    """`attempt` sends one request and never raises but when it is cancelled."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = address.base
        """The server's address, without options, for people."""
        self.key = find_key(address)
        self.model = address.model or _only_model(address, self.key)
        self.tariff = find_tariff(address, self.model, self.key)
        self.hourly = address.options.hourly
        self._url = address.url("chat/completions")
        self._headers = _headers(self.key)
        self._bodies = Bodies(self.model, address.preset)
        self._stream, self._idle = address.options.stream, address.options.idle if address.options.stream else 0.0
        self._schemas = Schemas(address.options.schema or ("prompt" if address.preset.schema == "prompt" else ""))
        self._client = choose(address.options.client)
        self._transport: Transport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def price(self) -> Price | None:
        """None where it is unknown."""
        return self.tariff.price

    async def attempt(self, request: Request, seconds: float, permit: Permit | None = None) -> Attempt:
        """One HTTP request; `HELD` without the permit, where there is one. Its body is made only now: twenty thousand
        that wait would fill the memory.

        Trouble whose blame is `call` and that may go `again` means that the server does not take the schema of the
        request's output: the next attempt, which may follow at once, has it in the prompt.
        """
        prompted = request.output is not None and self._schemas.prompted(request.output)
        stream = Stream() if self._stream else None
        try:
            body = self._bodies.encode(request, schema_in_prompt=prompted, stream=self._stream)
            answer = await self._connected().send(
                "POST",
                self._url,
                self._headers,
                body,
                seconds=seconds,
                most=MOST_REPLY,
                idle=self._idle,
                on_data=None if stream is None else stream.feed,
                permit=permit,
            )
        except StepFailed as failure:
            return Attempt(Trouble(failure, "call"))
        except Held:
            return Attempt(HELD)
        except Lost as lost:
            if stream is None or not (stream.settled or stream.failed):
                failure = StepFailed(lost.kind, f"{self.name}: {self.shown(lost.text)}")
                return Attempt(Trouble(failure, "network", not lost.final, lost.sent))
            answer = Answer(200, {}, b"")
        outcome = self.judge(answer) if stream is None else self._judge_stream(answer, stream)
        if not isinstance(outcome, Reply) and answer.headers.get("content-type", "").startswith("text/html"):
            outcome = outcome._replace(page=True)
        if isinstance(outcome, Reply):
            tariff = self.tariff
            if tariff.price is None:
                return Attempt(outcome, answer.headers)
            return Attempt(tariff.priced(outcome), answer.headers, not told(outcome))
        if not prompted and self._schemas.learn(request.output, outcome, answer.body):
            outcome = outcome._replace(blame="call", again=True)
        return Attempt(outcome, answer.headers)

    def worst(self, request: Request) -> float | None:
        """The most that one such request can cost, in dollars; None where nobody can say."""
        try:
            return self.tariff.worst(request, self.body(request))
        except StepFailed:  # it is never sent
            return 0.0

    def unbounded(self, request: Request) -> str:
        """Why `worst` says None, and the way out; empty where it does not."""
        return self.tariff.unbounded(request)

    async def send(
        self,
        method: str,
        path: str,
        *,
        query: str = "",
        body: bytes = b"",
        content_type: str = "application/json",
        seconds: float,
        most: int,
    ) -> Answer:
        """Any other request to the server, or `Lost`. `query` goes behind the address's own."""
        url = self.address.url(path)
        if query:
            url = f"{url}{'&' if self.address.query else '?'}{query}"
        headers = {**self._headers, "Content-Type": content_type}
        return await self._connected().send(method, url, headers, body, seconds=seconds, most=most)

    async def metrics(self, seconds: float) -> str | None:
        """What GET /metrics says, beside /v1 and without the key; empty where there is none, None for no answer."""
        url = f"{self.address.base.removesuffix('/v1')}/metrics"
        try:
            answer = await self._connected().send("GET", url, {}, seconds=seconds, most=MOST_METRICS)
        except Lost:
            return None
        return answer.body.decode(errors="replace") if answer.status == 200 else ""

    def _connected(self) -> Transport:
        """The client that all endpoints of this event loop share. An engine may serve several runs, each with a loop
        of its own, one after the other."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            self._transport, self._loop = acquire(self._client), loop
        return self._transport

    def body(self, request: Request) -> bytes:
        """What is sent for the request now; `StepFailed` if it cannot be said in JSON, or not to this provider."""
        return self._bodies.encode(request, schema_in_prompt=self._schemas.prompted(request.output))

    def shown(self, text: str) -> str:
        """A server's own words, or what quotes them: short, and without the key."""
        return wire.shown(text.encode(errors="replace"), self.key)

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await release(transport)

    def judge(self, answer: Answer) -> Reply | Trouble:
        """What an answer means that came in one piece; the cost of its usage is only what the server says."""
        status = answer.status
        if 200 <= status < 300 and not answer.too_large:
            try:
                return wire.decode(answer.body, self.key)
            except StepFailed as failure:
                status = wire.true_status(answer.body)
                if status == 200:
                    return self._garbled(failure, answer)
        return self._refused(answer, status)

    def _judge_stream(self, answer: Answer, stream: Stream) -> Reply | Trouble:
        if answer.status != 200 or answer.too_large:
            return self.judge(answer)
        if not stream.begun and not answer.headers.get("content-type", "").startswith("text/event-stream"):
            return self.judge(replace(answer, body=stream.raw))
        if stream.failed is not None:
            status = wire.event_status(stream.failed)
            return self._failed(status, stream.failed, answer.headers, billed=stream.spoke)
        if stream.garbled is not None:
            failure = StepFailed("server", f"an event of the reply {wire.garbled(stream.garbled)}")
            return self._garbled(failure, answer)
        completion = stream.end()
        if completion is None:
            text = f"{self.name}: the stream ended before the reply did"
            return Trouble(StepFailed("connection", text), "network", True, True, None, answer.status)
        try:
            return wire.reply(completion, b"", self.key)
        except StepFailed as failure:
            return self._garbled(failure, answer)

    def _refused(self, answer: Answer, status: int) -> Trouble:
        if answer.too_large:
            text = f"the reply of {self.name} is longer than the {MOST_REPLY} bytes we accept"
            return Trouble(StepFailed("server", text), "call", billed=True, status=status)
        if 300 <= status < 400:
            return Trouble(StepFailed("request", self._redirect(answer)), "call", status=status)
        return self._failed(status, answer.body, answer.headers)

    def _failed(self, status: int, body: bytes, headers: Mapping[str, str], *, billed: bool = False) -> Trouble:
        failure = wire.failure(status, body, self.key)
        wait = retry_after(headers)
        if status == 429:
            return Trouble(failure, "limit", True, billed, wait, status)
        if status >= 500 or status == 408:
            return Trouble(failure, "server", True, billed or status in GATEWAY, wait, status)
        return Trouble(failure, "call", billed=billed, status=status)

    def _garbled(self, failure: StepFailed, answer: Answer) -> Trouble:
        kind = answer.headers.get("content-type", "").partition(";")[0]
        failure.text += f" (content type {self.shown(kind)!r}, from {self.name})"
        return Trouble(failure, "server", False, True, None, answer.status)

    def _redirect(self, answer: Answer) -> str:
        where = self.shown(answer.headers.get("location", "").partition("?")[0])
        return (
            f"{self.name} redirects ({answer.status}) to {where!r}; a prompt and its key are not sent on. "
            "If you trust it, give that address, without /chat/completions, as the model's URL"
        )


def _headers(key: Key | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "weaverant"}
    if key is not None:
        headers["Authorization"] = key.bearer()
    return headers


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from seconds or an HTTP date by the server's own clock, which may not be ours; `LONGEST_PAUSE_S` at
    most: hundreds of digits are infinite as a float."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.replace(".", "", 1).isdecimal():
        return min(float(text), LONGEST_PAUSE_S)
    try:
        until = parsedate_to_datetime(text).timestamp()
        now = parsedate_to_datetime(headers["date"]).timestamp() if "date" in headers else time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0.0, until - now), LONGEST_PAUSE_S)


def _only_model(address: Address, key: Key | None) -> str:
    """The one model a server has."""
    try:
        names = list_models(address, key)
    except NotListed as error:
        raise UserError(
            f"no model is named after # and {address.base}/models gave no list of models ({error}). "
            f"Is the server up? Or name the model: {address.base}#NAME"
        ) from None
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:20]) if names else "none"
    example = names[0] if names else "NAME"
    raise UserError(
        f"{address.base} has {len(names)} models ({listed}); expected one to be named: {address.base}#{example}"
    )
