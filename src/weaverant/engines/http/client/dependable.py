"""The dependable HTTP client: aiohttp behind the seam. It sends no POST a second time; aiohttp may so send a GET."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from weaverant.engines.http.client import tcp
from weaverant.engines.http.client.body import Garbled, body_of
from weaverant.engines.http.client.network import ACCEPT_ENCODING, Origin, header_lines, locate, reason, trust
from weaverant.engines.http.client.proxies import Proxy, proxy_for, refused
from weaverant.engines.http.client.transport import CLOSED, CONNECT_S, IDLE_S, MOST_HEAD, Answer, Lost

LARGE_BODY = 1_000_000  # above 1 MiB aiohttp warns about raw bytes and wants a stream

LOOK_S = 1.0
"""Seconds between two looks at whether a connection of which nothing comes still stands."""


class Dependable:
    """See `Transport`."""

    def __init__(self) -> None:
        self._session = _session()
        self._proxies: dict[Origin, Proxy | None] = {}
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
    ) -> Answer:
        if self._closed:
            raise Lost("connection", CLOSED, sent=False)
        header_lines(tuple(headers.items()))
        origin, known = _locate(url)
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        request = _Request(method, known, headers, body, self._proxies[origin])
        try:
            async with asyncio.timeout(seconds):
                async with request.begin(self._session) as response:
                    return await _read(response, most, idle, on_data)
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

    async def close(self) -> None:
        self._closed = True
        await self._session.close()


@lru_cache(1024)
def _locate(url: str) -> tuple[Origin, URL]:
    origin, target = locate(url)
    return origin, URL(f"{'https' if origin.tls else 'http'}://{origin.authority}{target}", encoded=True)


class _Request:
    """One request on its way. `sent`: its head has been written."""

    def __init__(self, method: str, url: URL, headers: Mapping[str, str], body: bytes, proxy: Proxy | None) -> None:
        self._method = method
        self._url = url
        self._headers = {"Accept-Encoding": ACCEPT_ENCODING, **headers}
        self._body = body
        self._proxy = proxy
        self._tunnel = proxy is not None and url.scheme == "https"
        self.sent = False

    def begin(self, session: aiohttp.ClientSession) -> Any:
        proxy = self._proxy
        data = self._body if len(self._body) <= LARGE_BODY else io.BytesIO(self._body)
        headers = self._headers if proxy is None or self._tunnel else {**self._headers, **proxy.headers}
        return session.request(
            self._method,
            self._url,
            data=data or None,
            headers=headers,
            allow_redirects=False,
            proxy=None if proxy is None else f"http://{proxy!r}",
            proxy_headers=proxy.headers if proxy is not None and self._tunnel else None,
            trace_request_ctx=self,
        )

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
    one on which more came than was asked for: it would be taken for the answer to the next request."""

    async def connect(self, req: ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol, transport = connection.protocol, connection.transport
            if protocol is not None and not protocol.should_close and transport is not None and _is_fit(transport):
                return connection
            connection.close()


def _is_fit(transport: asyncio.BaseTransport) -> bool:
    if transport.is_closing():
        return False
    watch = tcp.Watch(transport.get_extra_info("socket"))
    # A new connection of TLS may have session tickets to read, and nothing tells it from an old one.
    return not (watch.stirs() if transport.get_extra_info("sslcontext") is None else watch.closed())


async def _read(
    response: aiohttp.ClientResponse, most: int, idle: float, on_data: Callable[[bytes], None] | None
) -> Answer:
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.raw_headers}
    body = body_of(response.status, headers, most, on_data)
    while not body.too_large and (piece := await _next(response, idle)):
        body.feed(piece)
    if body.too_large:
        response.close()
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


async def _mark_sent(session: aiohttp.ClientSession, context: SimpleNamespace, _: Any) -> None:
    context.trace_request_ctx.sent = True


def _session() -> aiohttp.ClientSession:
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_mark_sent)
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, ttl_dns_cache=300, keepalive_timeout=IDLE_S, ssl=trust()),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        max_line_size=MOST_HEAD,
        max_field_size=MOST_HEAD,
        trace_configs=[trace],
    )
