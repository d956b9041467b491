"""One model at one server: turns a request into one HTTP request, and what comes back into a reply or trouble."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

import msgspec
from msgspec import Struct

from weaverant.engines.http import wire
from weaverant.engines.http.address import Address, find_key
from weaverant.engines.http.attempt import Attempt, Trouble
from weaverant.engines.http.dependable import Dependable
from weaverant.engines.http.prices import Price, parse_price, worst
from weaverant.engines.http.transport import CONNECT_S, Answer, Lost, Transport
from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request, Usage

OPENAI = "api.openai.com"
GATEWAY = frozenset((408, 502, 504))
"""Statuses of a gateway that gave up on a server which may go on working, and bill."""

MOST_REPLY = 64_000_000
"""Bytes of an answer, after decompression."""


class Endpoint:
    """`attempt` sends one request and never raises but when it is cancelled."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.model = address.model or _only_model(address)
        self.price: Price | None = parse_price(address.options.price) if address.options.price else None
        self.hourly = address.options.hourly
        self._key = find_key(address)
        self._url = address.url("chat/completions")
        self._headers = _headers(self._key)
        self._limit_field = "max_completion_tokens" if address.host == OPENAI else "max_tokens"
        self._transport: Transport | None = None

    @property
    def name(self) -> str:
        """The server's address, without options, for people."""
        return self.address.base

    async def attempt(self, request: Request, seconds: float) -> Attempt:
        """One HTTP request. Its body is made only now: twenty thousand that wait would fill the memory."""
        if self._transport is None:
            self._transport = Dependable()
        try:
            body = self._body(request)
            answer = await self._transport.send(
                "POST", self._url, self._headers, body, seconds=seconds, most=MOST_REPLY
            )
        except StepFailed as failure:
            return Attempt(Trouble(failure, "call"))
        except Lost as lost:
            failure = StepFailed(lost.kind, f"{self.name}: {lost.text}")
            return Attempt(Trouble(failure, "network", not lost.final, lost.sent))
        outcome = self._judge(answer)
        if isinstance(outcome, Reply):
            outcome = msgspec.structs.replace(outcome, usage=self._priced(outcome.usage))
        return Attempt(outcome, answer.headers)

    def worst(self, request: Request) -> float | None:
        """The most that one such request can cost, in dollars; None where nobody can say."""
        return None if self.price is None else worst(request, self._body(request), self.price)

    async def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    def _body(self, request: Request) -> bytes:
        return wire.encode(request, self.model, limit_field=self._limit_field)

    def _priced(self, usage: Usage) -> Usage:
        if usage.cost or self.price is None:
            return usage
        return msgspec.structs.replace(usage, cost=self.price.cost(usage))

    def _judge(self, answer: Answer) -> Reply | Trouble:
        status = answer.status
        if 200 <= status < 300:
            status = wire.true_status(answer.body)
        if answer.too_large:
            text = f"the reply of {self.name} is longer than the {MOST_REPLY} bytes we accept"
            return Trouble(StepFailed("server", text), "call", billed=True, status=status)
        if 300 <= status < 400:
            return Trouble(StepFailed("request", self._redirect(answer)), "call", status=status)
        if status != 200:
            failure = wire.failure(status, answer.body, self._key)
            wait = retry_after(answer.headers.get("retry-after"))
            if status == 429:
                return Trouble(failure, "limit", True, False, wait, status)
            if status >= 500 or status == 408:
                return Trouble(failure, "server", True, status in GATEWAY, wait, status)
            return Trouble(failure, "call", status=status)
        try:
            return wire.decode(answer.body, self._key)
        except StepFailed as failure:
            failure.text += (
                f" (content type {answer.headers.get('content-type', '').partition(';')[0]!r}, from {self.name})"
            )
            return Trouble(failure, "server", False, True, None, status)

    def _redirect(self, answer: Answer) -> str:
        where = wire.shown(answer.headers.get("location", "").partition("?")[0].encode(), self._key)
        return (
            f"{self.name} redirects ({answer.status}) to {where!r}; a prompt and its key are not sent on. "
            "If you trust it, give that address, without /chat/completions, as the model's URL"
        )


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


def _headers(key: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "weaverant"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


def retry_after(header: str | None) -> float | None:
    """Seconds, from seconds or an HTTP date."""
    if header is None:
        return None
    text = header.strip()
    if text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _only_model(address: Address) -> str:
    """The one model a server has. Runs in a thread because the caller may already be inside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        names = thread.submit(lambda: asyncio.run(_list_models(address))).result()
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names[:20]) if names else "none"
    example = names[0] if names else "NAME"
    raise UserError(
        f"{address.base} has {len(names)} models ({listed}); expected one to be named: {address.base}#{example}"
    )


async def _list_models(address: Address) -> list[str]:
    key = find_key(address)
    transport = Dependable()
    try:
        answer = await transport.send("GET", address.url("models"), _headers(key), seconds=CONNECT_S, most=MOST_REPLY)
        if answer.status == 200:
            return [model.id for model in msgspec.json.decode(answer.body, type=_Models).data]
        found = f"status {answer.status}: {wire.shown(answer.body, key)}"
    except (Lost, msgspec.MsgspecError, UnicodeDecodeError) as error:
        found = str(error)
    finally:
        await transport.close()
    raise UserError(
        f"no model is named after # and {address.base}/models gave no list of models ({found}). "
        f"Is the server up? Or name the model: {address.base}#NAME"
    )
