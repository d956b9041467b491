"""The dependable HTTP client: aiohttp behind the seam. It sends no POST a second time; aiohttp may so send a GET."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from itertools import chain
from typing import Any

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from multidict import CIMultiDict
from yarl import URL

from weaverant.engines.http.client import tcp
from weaverant.engines.http.client.body import Garbled, body_of, read_headers
from weaverant.engines.http.client.network import ACCEPT_ENCODING, Origin, header_lines, locate, reason, trust
from weaverant.engines.http.client.proxies import Proxy, proxy_for, refused
from weaverant.engines.http.client.ticker import Ticker
from weaverant.engines.http.client.transport import CLOSED, CONNECT_S, IDLE_S, MOST_HEAD, Answer, Held, Lost

AUTOMATIC = ("User-Agent", "Accept", "Content-Type")
"""Headers that aiohttp makes up where a request has none."""

LARGE_BODY = 1_000_000  # above 1 MiB aiohttp warns about raw bytes and wants a stream

ROUTES = 1_024
"""How many are remembered: there are as many as there are servers, models and keys."""

LOOK_S = 1.0
"""Seconds between two looks at whether a connection of which nothing comes still stands."""


class Dependable:
    """See `Transport`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = _session()
        self._proxies: dict[Origin, Proxy | None] = {}
        self._routes: dict[int, _Route] = {}
        """By the identity of their headers, which they keep alive."""
        self._limits: dict[asyncio.Timeout, float] = {}
        """When each request must have ended, on the loop's clock."""
        self._ticker = Ticker(self._look)
        self._closed = False

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
        if self._closed:
            raise Lost("connection", CLOSED, sent=False)
        route = self._routes.get(id(headers))
        if route is None or route.headers is not headers or route.url != url or route.method != method:
            route = self._route(method, url, headers)
        if permit is not None and not permit():
            raise Held
        request, limit = _Request(route.proxy, permit), asyncio.timeout(None)
        asking = _asking.set(request)
        try:
            async with limit:
                self._limit(limit, seconds)
                response = await self._session.request(
                    method, route.place, data=_payload(body) if body else None, **route.options
                )
                try:
                    return await _read(response, most, idle, on_data)
                finally:
                    if not response.closed:  # it was not read to its end
                        response.close()
        except aiohttp.ConnectionTimeoutError:
            raise Lost("timeout", f"no connection within {CONNECT_S:g} s", sent=False) from None
        except TimeoutError as error:
            if not request.sent:
                raise Lost("timeout", f"no connection within {seconds:.2g} s", sent=False) from None
            silent = isinstance(error, _Silent)
            raise Lost("timeout", str(error) if silent else "no answer in time", sent=True) from None
        except Garbled as error:
            raise Lost("connection", f"no whole answer: {error}", sent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            if self._closed:
                raise Lost("connection", CLOSED, sent=request.sent) from None
            raise request.lost(error) from None
        finally:
            self._limits.pop(limit, None)
            _asking.reset(asking)

    async def close(self) -> None:
        self._closed = True
        await self._session.close()
        self._ticker.stop()

    def _route(self, method: str, url: str, headers: Mapping[str, str]) -> _Route:
        header_lines(tuple(headers.items()))
        if len(self._routes) >= ROUTES:
            self._routes.clear()
        origin, target = locate(url)
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        route = self._routes[id(headers)] = _Route(method, url, headers, origin, target, self._proxies[origin])
        return route

    def _limit(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limits[limit] = self._loop.time() + seconds
        self._ticker.start()

    def _look(self, now: float) -> bool:
        for limit in [one for one, end in self._limits.items() if end <= now]:
            del self._limits[limit]
            limit.reschedule(now)
        return bool(self._limits)


class _Route:
    """What all requests share that have the same method, URL and headers."""

    __slots__ = ("headers", "method", "options", "place", "proxy", "url")

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], origin: Origin, target: str, proxy: Proxy | None
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.place = URL(f"{'https' if origin.tls else 'http'}://{origin.authority}{target}", encoded=True)
        self.proxy = proxy
        tunnel = proxy is not None and origin.tls
        sent = CIMultiDict({"Accept-Encoding": ACCEPT_ENCODING, **headers})
        if proxy is not None and not tunnel:
            sent.update(proxy.headers)
        self.options: dict[str, Any] = {
            "headers": sent,
            "skip_auto_headers": [name for name in AUTOMATIC if name not in sent] or None,
            "allow_redirects": False,
            "proxy": None if proxy is None else f"http://{proxy!r}",
            "proxy_headers": proxy.headers if proxy is not None and tunnel else None,
        }


def _payload(body: bytes) -> bytes | io.BytesIO:
    return body if len(body) <= LARGE_BODY else io.BytesIO(body)


class _Request:
    """One request on its way. `sent`: it has a connection, and may have been written there."""

    __slots__ = ("_permit", "_proxy", "sent")

    def __init__(self, proxy: Proxy | None, permit: Callable[[], bool] | None) -> None:
        self._proxy = proxy
        self._permit = permit
        self.sent = False

    def begin(self) -> None:
        self.look()
        self.sent = True

    def look(self) -> None:
        """Raises `Held` where nothing may be written now."""
        if self._permit is not None and not self._permit():
            raise Held

    def lost(self, error: aiohttp.ClientError | OSError) -> Lost:
        if isinstance(error, aiohttp.ClientHttpProxyError) and self._proxy is not None:
            return refused(self._proxy, error.status)
        cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
        why, final = reason(cause) if isinstance(cause, OSError) else ("the server closed it", False)
        if not self.sent:
            where = f"the proxy {self._proxy!r}: " if self._proxy is not None else ""
            return Lost("connection", where + why, sent=False, final=final)
        if isinstance(error, aiohttp.ClientResponseError):
            why = error.message.partition("\n")[0].rstrip(":")  # what follows quotes the answer, cut somewhere
            return Lost("connection", f"no whole answer: it is no HTTP: {why}", sent=True)
        if isinstance(error, aiohttp.ClientPayloadError):
            return Lost("connection", "no whole answer: the connection broke in the middle of its body", sent=True)
        return Lost("connection", f"the connection broke before an answer came ({why})", sent=True)


class _Silent(TimeoutError):
    """An answer that has begun does not go on."""


class _Connector(aiohttp.TCPConnector):
    """Gives no connection to a request that the other side has closed, though the loop was not yet told of it, nor
    one on which more came than was asked for: it would be taken for the answer to the next request.

    Notes which request has got one: aiohttp's own way to tell, tracing, makes a dozen objects for it.
    """

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, transport = connection.protocol, connection.transport
            if protocol is not None and not protocol.should_close and transport is not None and _is_fit(transport):
                try:
                    _asking.get().begin()
                except Held:
                    connection.release()
                    raise
                return connection
            connection.close()


class _Body(ClientRequest):
    """A request whose head waits for its body, which comes a turn of the loop later."""

    async def write_bytes(
        self, writer: AbstractStreamWriter, conn: Connection, content_length: int | None = None
    ) -> None:
        try:
            _asking.get().look()
        except Held as held:
            if conn.protocol is not None:
                conn.protocol.set_exception(held)
            conn.close()
            return
        await super().write_bytes(writer, conn, content_length)


def _is_fit(transport: asyncio.BaseTransport) -> bool:
    if transport.is_closing():
        return False
    watch = tcp.Watch(transport.get_extra_info("socket"))
    # A new connection of TLS may have session tickets to read, and nothing tells it from an old one.
    return not (watch.stirs() if transport.get_extra_info("sslcontext") is None else watch.closed())


async def _read(
    response: aiohttp.ClientResponse, most: int, idle: float, on_data: Callable[[bytes], None] | None
) -> Answer:
    headers = read_headers(list(chain.from_iterable(response.raw_headers)))
    body = body_of(response.status, headers, most, on_data)
    while not body.too_large and (piece := await _next(response, idle)):
        body.feed(piece)
    return Answer(response.status, headers, body.end(), body.too_large)


async def _next(response: aiohttp.ClientResponse, idle: float) -> bytes:
    """The next piece of a body, empty at its end.

    Where the framing of a chunked body breaks late, aiohttp 3.14 closes the connection and does not tell the reader,
    who would wait for ever: hence the looks at the connection.
    """
    content = response.content
    piece = content.read_nowait()
    if piece or content.at_eof():
        return piece
    waited = 0.0
    while True:
        step = min(LOOK_S, idle - waited) if idle else LOOK_S
        try:
            async with asyncio.timeout(step):
                return await content.readany()
        except TimeoutError:
            waited += step
        if response.connection is None or response.connection.transport is None:
            raise Garbled("the connection broke in the middle of its body")
        if idle and waited >= idle:
            raise _Silent(f"the answer stopped for {idle:g} s")


_asking: ContextVar[_Request] = ContextVar("_asking")
"""The request that the running task makes."""


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        request_class=_Body,
        connector=_Connector(limit=0, ttl_dns_cache=300, keepalive_timeout=IDLE_S, ssl=trust()),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        max_line_size=MOST_HEAD,
        max_field_size=MOST_HEAD,
    )
