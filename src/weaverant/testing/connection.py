"""The server's side of HTTP/1.1, as small as a test server allows: httptools on an asyncio protocol.

An `Exchange` is one request and the ways to answer it, the ways servers fail included. Requests that a client
pipelines are answered as they get ready, in any order; no client of ours does that.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import TypeAlias, cast
from urllib.parse import unquote, urlsplit

import httptools
import msgspec

JSON = "application/json"
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


class Exchange:
    """One request, `scenario` the one that its URL names, `path` without that, `headers` with lower-case names.

    Whoever answers calls `reply`, or `begin`, `write`... and `end`.
    """

    __slots__ = (
        *("connection", "method", "scenario", "path", "query", "headers", "body"),
        *("status", "ended", "on_left"),
    )

    def __init__(self, connection: Connection, method: str, url: bytes, headers: dict[str, str], body: bytes) -> None:
        self.connection = connection
        self.method = method
        self.scenario, self.path, self.query = _parts(url)
        self.headers = headers
        self.body = body
        self.status = 0
        """The status that was sent; 0 before."""
        self.ended = False
        """Whether the reply was sent whole."""
        self.on_left: Callable[[bool], None] | None = None
        """Called when the connection breaks before the reply's end, with whether the server itself broke it."""

    @property
    def left(self) -> bool:
        """Whether the connection broke before the reply's end."""
        return not self.ended and self.connection.closing

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, kind: str = JSON) -> None:
        """The whole answer in one write."""
        self.connection.write(self._head(status, kind, headers, f"Content-Length: {len(body)}") + body)
        self._end()

    def json(self, value: object, status: int = 200) -> None:
        self.reply(status, msgspec.json.encode(value))

    def error(self, status: int, text: str) -> None:
        self.json({"error": {"message": text, "type": "invalid_request_error", "code": None}}, status)

    def begin(self, status: int = 200, headers: Mapping[str, str] | None = None, kind: str = JSON) -> None:
        """Start an answer of unknown length."""
        self.connection.write(self._head(status, kind, headers, "Transfer-Encoding: chunked"))

    async def write(self, data: bytes) -> None:
        """One chunk; returns when the client has taken most of what was written before."""
        self.connection.write(b"%x\r\n%b\r\n" % (len(data), data))
        await self.connection.drain()

    def end(self) -> None:
        self.connection.write(b"0\r\n\r\n")
        self._end()

    def promise(self, length: int, body: bytes) -> None:
        """Start an answer that says it is longer than it is."""
        self.connection.write(self._head(200, JSON, None, f"Content-Length: {length}") + body)

    def _head(self, status: int, kind: str, headers: Mapping[str, str] | None, length: str) -> bytes:
        self.status = status
        more = "".join(f"\r\n{name}: {value}" for name, value in headers.items()) if headers else ""
        keep = "" if self.connection.keeps else "\r\nConnection: close"
        phrase = _PHRASES.get(status, "Unknown")
        return f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\n{length}{more}{keep}\r\n\r\n".encode()

    def _end(self) -> None:
        if not self.connection.closing:
            self.ended = True
            self.connection.answered(self)


class Connection(asyncio.Protocol):
    """One client. `siblings` are all open connections of the server, this one among them."""

    def __init__(self, answer: Callable[[Exchange], None], siblings: set[Connection]) -> None:
        self.siblings = siblings
        self.keeps = True
        self.used = False
        self._answer = answer
        self._open: list[Exchange] = []
        self._ready: list[Exchange] = []
        self._cut = False
        self._writable: asyncio.Event | None = None
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.siblings.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.siblings.discard(self)
        self.resume_writing()
        waiting, self._open = self._open, []
        for exchange in waiting:
            if exchange.on_left is not None:
                exchange.on_left(self._cut)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer of another protocol may be ignored
        except httptools.HttpParserError:
            self.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.close()
        ready, self._ready = self._ready, []
        for exchange in ready:
            self._open.append(exchange)
            self._answer(exchange)

    # What the parser calls

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.keeps = self._parser.should_keep_alive()
        method = self._parser.get_method().decode()
        self._ready.append(Exchange(self, method, self._url, self._headers, b"".join(self._body)))

    # What an exchange calls

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.closing:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until there is room for more; where the connection is lost, for the cancellation that follows."""
        if self.closing:
            await asyncio.get_running_loop().create_future()
        if self._writable is not None:
            await self._writable.wait()

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def answered(self, exchange: Exchange) -> None:
        self._open.remove(exchange)
        if not self.keeps:
            self.close()

    def close(self) -> None:
        """End the connection in the middle of whatever it is at, after what was written."""
        self._cut = True
        self._transport.close()

    def abort(self) -> None:
        """Reset the connection: the other side sees `connection reset by peer`."""
        self._cut = True
        found: socket.socket | None = self._transport.get_extra_info("socket")
        if found is not None and found.fileno() >= 0:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


@lru_cache(maxsize=1_000)
def _parts(url: bytes) -> tuple[str, str, str]:
    """(scenario, path, query). A proxied request may name its host; the path is what counts."""
    parts = urlsplit(url.decode("latin-1"))
    if not parts.path.startswith("/scenario/"):
        return "", parts.path, parts.query
    name, _, rest = parts.path.removeprefix("/scenario/").partition("/")
    return unquote(name), f"/{rest}", parts.query


Route: TypeAlias = Callable[[Exchange], None]
