"""The fast HTTP client: HTTP/1.1 on asyncio's transports and httptools' parser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from weaverant.engines.http.client.connection import Connection
from weaverant.engines.http.client.dial import dial
from weaverant.engines.http.client.network import ACCEPT_ENCODING, Origin, header_lines, locate
from weaverant.engines.http.client.proxies import proxy_for
from weaverant.engines.http.client.ticker import Ticker
from weaverant.engines.http.client.transport import CLOSED, CONNECT_S, Answer, Held, Lost
from weaverant.engines.http.key import ShyBytes

READ_BYTES = 262_144
"""What is read at once at most. asyncio's own reading makes that much room anew each time."""

DIALS = 64
"""Connections to one server that are opened at once: more overflow the queue of many servers, and wait a second."""

STARTS = 1_024
"""Beginnings of requests that are remembered: there are as many as there are servers, models and keys."""


class Fast:
    """See `Transport`. Connections are kept per server; the one used last is used first, so that those a lighter
    load has no need of grow old and are closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._places: dict[Origin, _Place] = {}
        self._starts: dict[int, _Start] = {}
        """By the identity of their headers, which they keep alive. To hash what is in them would take longer."""
        self._connections: set[Connection] = set()
        self._dials: set[asyncio.Task[Connection]] = set()
        self._ticker = Ticker(self._look)
        self._closed = False
        self._buffer = memoryview(bytearray(READ_BYTES))

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
        deadline = self._loop.time() + seconds
        start = self._starts.get(id(headers))
        if start is None or start.headers is not headers or start.url != url or start.method != method:
            start = self._start(method, url, headers)
        place = start.place
        end = b"Content-Length: %d\r\n\r\n" % len(body) if body or method != "GET" else b"\r\n"
        while True:
            if permit is not None and not permit():
                raise Held
            fresh = self._closed or not place.kept
            connection = await self._open(place, deadline) if fresh else place.kept.popitem()[0]
            try:
                return await connection.ask(start.text, end, body, most, on_data, deadline, idle, permit)
            except Lost as lost:
                if lost.sent or fresh:
                    raise  # else the server had closed it while nobody used it
            except asyncio.CancelledError:
                connection.leave()
                raise

    async def close(self) -> None:
        self._closed = True
        ends: list[asyncio.Future[Any]] = [*self._dials]
        for dialing in self._dials:
            dialing.cancel()
        for connection in tuple(self._connections):
            ends.append(connection.gone)
            connection.fail(Lost("connection", CLOSED, sent=True))
            connection.abort()
        if ends:
            await asyncio.wait(ends)
        self._ticker.stop()

    def _start(self, method: str, url: str, headers: Mapping[str, str]) -> _Start:
        if len(self._starts) >= STARTS:
            self._starts.clear()
        origin, target = locate(url)
        place = self._places.get(origin)
        if place is None:
            place = self._places[origin] = _Place(origin)
        start = _Start(method, url, headers, place, place.start(method, target, headers))
        self._starts[id(headers)] = start
        return start

    async def _open(self, place: _Place, deadline: float) -> Connection:
        """A connection that nobody else may use. Cancelling the caller closes it."""
        if self._closed:
            raise Lost("connection", CLOSED, sent=False)
        task = self._loop.create_task(self._dial(place, deadline))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)
        try:
            return await task
        except asyncio.CancelledError:
            if task.cancelled():
                if self._closed:
                    raise Lost("connection", CLOSED, sent=False) from None
            elif task.exception() is None:
                task.result().abort()
            raise

    async def _dial(self, place: _Place, deadline: float) -> Connection:
        connection = Connection(self._loop, self._connections, place.kept, self._buffer)
        limit = CONNECT_S
        try:
            async with asyncio.timeout_at(deadline), place.dials:
                limit = min(CONNECT_S, deadline - self._loop.time())
                async with asyncio.timeout(CONNECT_S):
                    await dial(connection, place.origin, place.proxy)
        except TimeoutError:
            raise Lost("timeout", f"no connection within {max(0.0, limit):.2g} s", sent=False) from None
        self._ticker.start()
        return connection

    def _look(self, now: float) -> bool:
        for connection in [one for one in self._connections if one.until <= now]:
            connection.expire()
        return bool(self._connections)


class _Place:
    """A server: its connections, and how requests to it begin."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.proxy = proxy_for(origin)
        self.kept: dict[Connection, None] = {}
        self.dials = asyncio.Semaphore(DIALS)
        host = f"Host: {origin.authority}\r\nAccept-Encoding: {ACCEPT_ENCODING}\r\n"
        if self.proxy is None or origin.tls:
            self._before, self._after = "", f" HTTP/1.1\r\n{host}"
        else:  # such a proxy is told the whole URL
            self._before = f"http://{origin.authority}"
            self._after = f" HTTP/1.1\r\n{host}{header_lines(tuple(self.proxy.headers.items()))}"

    def start(self, method: str, target: str, headers: Mapping[str, str]) -> ShyBytes:
        """The head of a request, but for its last lines."""
        lines = header_lines(tuple(headers.items()))
        return ShyBytes(f"{method} {self._before}{target}{self._after}{lines}".encode("latin-1"))


class _Start(Struct, frozen=True, eq=False):
    """What all requests share that have the same method, URL and headers."""

    method: str
    url: str
    headers: Mapping[str, str]
    place: _Place
    text: ShyBytes
