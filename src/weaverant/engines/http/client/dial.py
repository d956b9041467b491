"""Opens connections: to a server, to a proxy, or through a proxy's tunnel to a server."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from weaverant.engines.http.client.network import Origin, header_lines, reason, trust
from weaverant.engines.http.client.proxies import Proxy, refused
from weaverant.engines.http.client.transport import MOST_HEAD, Lost

HAPPY_EYEBALLS_S = 0.25
"""Seconds until the next of a host's addresses is tried at the same time (RFC 8305)."""


async def dial(protocol: asyncio.BaseProtocol, origin: Origin, proxy: Proxy | None) -> None:
    """Connect the protocol; `Lost` where that cannot be. Has no limit of time."""
    try:
        if proxy is None:
            await _connect(protocol, origin.host, origin.port, origin)
        elif origin.tls:
            await _tunnel(protocol, origin, proxy)
        else:
            await _connect(protocol, proxy.host, proxy.port, None)
    except OSError as error:
        text, final = reason(error)
        where = f"the proxy {proxy!r}: " if proxy is not None else ""
        raise Lost("connection", where + text, sent=False, final=final) from None


async def _connect(protocol: asyncio.BaseProtocol, host: str, port: int, tls: Origin | None) -> asyncio.Transport:
    loop = asyncio.get_running_loop()
    context = trust() if tls is not None and tls.tls else None
    # An address needs no race, which costs tasks, and uvloop knows none.
    address = ":" in host or host.replace(".", "").isdigit()
    if address or not isinstance(loop, asyncio.BaseEventLoop):
        transport, _ = await loop.create_connection(lambda: protocol, host, port, ssl=context)
    else:
        transport, _ = await loop.create_connection(
            lambda: protocol, host, port, ssl=context, happy_eyeballs_delay=HAPPY_EYEBALLS_S
        )
    return transport


async def _tunnel(protocol: asyncio.BaseProtocol, origin: Origin, proxy: Proxy) -> None:
    loop = asyncio.get_running_loop()
    tunnel = _Tunnel(loop)
    host = f"[{origin.host}]" if ":" in origin.host else origin.host
    place = f"{host}:{origin.port}"
    with ExitStack() as undo:
        transport = await _connect(tunnel, proxy.host, proxy.port, None)
        undo.callback(transport.abort)
        head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
        transport.write(f"{head}{header_lines(tuple(proxy.headers.items()))}\r\n".encode("latin-1"))
        status = await tunnel.status
        if not 200 <= status < 300:
            raise refused(proxy, status)
        secure = await loop.start_tls(transport, protocol, trust(), server_hostname=origin.host)
        if secure is None:
            raise ConnectionAbortedError
        protocol.connection_made(secure)
        undo.pop_all()


class _Tunnel(asyncio.Protocol):
    """Waits for the proxy's answer to CONNECT: `status`, or a `ConnectionError`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.status: asyncio.Future[int] = loop.create_future()
        self._parser = HttpResponseParser(self)
        self._read = 0

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._fail(f"its answer to CONNECT is no HTTP: {error}")
        if self._read > MOST_HEAD:
            self._fail("its answer to CONNECT has no end")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("it closed the connection that it was to open")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self.status.done():
            self.status.set_result(status)

    def _fail(self, text: str) -> None:
        if not self.status.done():
            self.status.set_exception(ConnectionError(text))
