"""One pooled HTTP client for one model of one server, with time-outs and bounded retries.

A call is retried after 408, 429, 5xx, a broken connection or a connection that took too long; never after any
other 4xx, and never beyond its time. Shared limits, health and hedging belong to a pool around engines.
"""

from __future__ import annotations

import asyncio
import io
import random
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from weaverant.engines.http import wire
from weaverant.engines.http.address import Address, find_key, parse
from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request
from weaverant.protocols import CallContext

CONNECT_S = 10.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
LARGE_BODY = 1_000_000  # above 1 MiB aiohttp warns about raw bytes and wants a stream
OPENAI = "api.openai.com"


class ChatCompletions:
    """An engine that asks `model` at `base_url`, the part of the address before `/chat/completions`.

    `timeout` is in seconds and holds for a call with all its retries, not for its wait for a connection.
    `connections` are open at most (0: half the files this process may open); further calls queue, first come
    first served. `max_reply` is in bytes, after decompression. The key is read from `api_key_env`, see `find_key`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        timeout: float = 600.0,
        retries: int = 4,
        connections: int = 0,
        max_reply: int = 64_000_000,
    ) -> None:
        self._address = parse(base_url)
        self._model = model
        self._key = find_key(self._address, api_key_env)
        self._url = URL(self._address.url("chat/completions"), encoded=True)
        self._limit_field = "max_completion_tokens" if self._address.host == OPENAI else "max_tokens"
        self._timeout = timeout
        self._retries = retries
        self._max_reply = max_reply
        self._connections = connections or _half_of_the_files()
        self._open_line: _Line | None = None

    @classmethod
    def open(cls, spec: str) -> ChatCompletions:
        """`http://host:8000/v1#model`, with `?key_env=NAME` for the key. Without a model the server is asked for
        its list, which blocks for up to 10 s, and the list must have one entry."""
        address = parse(spec)
        return cls(spec, address.model or _only_model(address), api_key_env=address.key_env)

    def __repr__(self) -> str:
        return f"ChatCompletions({self._address.base!r}, {self._model!r})"

    @property
    def identity(self) -> str:
        return f"http:{self._model}"

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        line = self._line()
        left = self._timeout
        attempt = 0
        while True:
            attempt += 1
            async with line.places:
                began = time.monotonic()
                answer = await self._try(line, request, left)
                left -= time.monotonic() - began
            if isinstance(answer, Reply):
                usage = msgspec.structs.replace(answer.usage, requests=attempt)
                return msgspec.structs.replace(answer, usage=usage)
            wait = _wait(attempt, answer.retry_after)
            if not answer.again or attempt > self._retries or wait >= left:
                raise self._final(answer, attempt, wait)
            await asyncio.sleep(wait)
            left -= wait

    async def close(self) -> None:
        """Calls in flight or waiting fail with kind `connection`. A later call opens the engine again."""
        line, self._open_line = self._open_line, None
        if line is not None:
            await line.session.close()

    def _line(self) -> _Line:
        if self._open_line is None:
            self._open_line = _Line(_session(self._key), asyncio.Semaphore(self._connections))
        return self._open_line

    async def _try(self, line: _Line, request: Request, seconds: float) -> Reply | _Trouble:
        """One HTTP request. Its body is made only now: twenty thousand that wait would fill the memory."""
        body = wire.encode(request, self._model, limit_field=self._limit_field)
        if line.session.closed:
            return _Trouble(StepFailed("connection", f"the engine for {self._place} was closed"))
        try:
            async with asyncio.timeout(seconds):
                response = await self._exchange(line.session, body)
        except aiohttp.ConnectionTimeoutError:
            return _Trouble(StepFailed("timeout", f"no connection to {self._place} within {CONNECT_S:g} s"), True)
        except TimeoutError:
            text = f"{self._place} had not answered when the call's {self._timeout:g} s were over"
            return _Trouble(StepFailed("timeout", text))
        except (aiohttp.ClientError, OSError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            text = f"the connection to {self._place} failed: {said}"
            # A certificate that is not trusted now will not be in a second.
            return _Trouble(StepFailed("connection", text), not isinstance(error, aiohttp.ClientSSLError))
        return self._judge(response)

    def _judge(self, response: _Response) -> Reply | _Trouble:
        status = response.status
        if 200 <= status < 300:
            status = wire.true_status(response.body)
        if response.too_large:
            text = f"the reply of {self._place} is longer than the {self._max_reply} bytes we accept"
            return _Trouble(StepFailed("server", text), status=status)
        if 300 <= status < 400:
            return _Trouble(StepFailed("request", self._redirect(response)), status=status)
        if status != 200:
            again = status in (408, 429) or status >= 500
            return _Trouble(wire.failure(status, response.body, self._key), again, response.retry_after, status)
        try:
            return wire.decode(response.body, self._key)
        except StepFailed as failure:
            failure.text += f" (content type {response.content_type!r}, from {self._place})"
            return _Trouble(failure, status=status)

    async def _exchange(self, session: aiohttp.ClientSession, body: bytes) -> _Response:
        data = body if len(body) <= LARGE_BODY else io.BytesIO(body)
        async with session.post(self._url, data=data, allow_redirects=False) as response:
            headers = response.headers
            chunks: list[bytes] = []
            size = 0
            while chunk := await response.content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > self._max_reply:  # leaving the block now closes the connection
                    break
            return _Response(
                response.status,
                b"".join(chunks) if size <= self._max_reply else b"",
                response.content_type,
                _retry_after(headers.get("Retry-After")),
                headers.get("Location", ""),
                size > self._max_reply,
            )

    def _final(self, trouble: _Trouble, attempts: int, wait: float) -> StepFailed:
        failure = trouble.failure
        text = failure.text
        if attempts > 1:
            text += f"; tried {attempts} times"
        if trouble.again and attempts <= self._retries:
            text += f"; the next try, in {wait:.1f} s, would come after the call's {self._timeout:g} s"
        return StepFailed(failure.kind, text, {"requests": attempts, "status": trouble.status})

    def _redirect(self, response: _Response) -> str:
        where = wire.shown(response.location.partition("?")[0].encode(), self._key)
        return (
            f"{self._place} redirects ({response.status}) to {where!r}; a prompt and its key are not sent on. "
            "If you trust it, give that address, without /chat/completions, as the model's URL"
        )

    @property
    def _place(self) -> str:
        return self._address.base


class _Line(NamedTuple):
    """What belongs to one event loop: made by the first call, closed once."""

    session: aiohttp.ClientSession
    places: asyncio.Semaphore


class _Trouble(NamedTuple):
    """A request that gave no reply; `again` if another may."""

    failure: StepFailed
    again: bool = False
    retry_after: float | None = None
    status: int = 0


class _Response(NamedTuple):
    status: int
    body: bytes
    content_type: str
    retry_after: float | None
    location: str
    too_large: bool


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


def _half_of_the_files() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65_536 if limit == resource.RLIM_INFINITY else max(16, limit // 2)


def _session(key: str | None) -> aiohttp.ClientSession:
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "weaverant"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=headers,
    )


def _wait(attempt: int, retry_after: float | None) -> float:
    """Seconds until the next try. The chance in it keeps calls that failed together from coming back together."""
    if retry_after is not None:
        return retry_after + random.uniform(0, 0.1 * retry_after + 0.05)
    longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (attempt - 1))
    return random.uniform(longest / 2, longest)


def _retry_after(header: str | None) -> float | None:
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
    url = URL(address.url("models"), encoded=True)
    key = find_key(address)
    found = f"no answer within {CONNECT_S:g} s"
    try:
        async with (
            asyncio.timeout(CONNECT_S),
            _session(key) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            body = await response.read()
            if response.status == 200:
                return [model.id for model in msgspec.json.decode(body, type=_Models).data]
            found = f"status {response.status}: {wire.shown(body, key)}"
    except TimeoutError:
        pass
    except (aiohttp.ClientError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        found = str(error)
    raise UserError(
        f"no model is named after # and {address.base}/models gave no list of models ({found}). "
        f"Is the server up? Or name the model: {address.base}#NAME"
    )
