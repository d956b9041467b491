"""One connection of the fast client: a request goes out, an answer comes back, one pair at a time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

from weaverant.engines.http.client import tcp
from weaverant.engines.http.client.body import Garbled
from weaverant.engines.http.client.network import reason
from weaverant.engines.http.client.reader import Reader
from weaverant.engines.http.client.transport import IDLE_S, Answer, Held, Lost

ONE_WRITE = 65_536
"""Bytes of a body that are joined to the head, to be one write; a longer one is written after it, uncopied."""


class Connection(asyncio.BufferedProtocol):
    """Is in `home`, the set of all connections, while it is open, and in `kept` while it waits for a request."""

    __slots__ = (
        *(
            "_buffer",
            "_deadline",
            "_home",
            "_idle",
            "_kept",
            "_loop",
            "_reader",
            "_socket",
            "_tls",
            "_transport",
            "_waiter",
            "_watch",
            "_writing",
            "_written",
        ),
        *("gone", "until"),
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        home: set[Connection],
        kept: dict[Connection, None],
        buffer: memoryview,
    ) -> None:
        """`buffer` is read into: one serves all connections of a loop, since what came is used up before the next."""
        self._loop = loop
        self._home = home
        self._kept = kept
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._socket: Any = None
        self._tls = False
        self._watch: tcp.Watch | None = None
        self._written = self._writing = 0  # bytes of the requests before this one, and with it
        self._reader = Reader()
        self._waiter: asyncio.Future[Answer] | None = None
        self._deadline = self._idle = 0.0
        self.gone: asyncio.Future[None] = loop.create_future()
        """Done when the connection is closed."""
        self.until = math.inf
        """When `expire` is due, on the loop's clock."""

    def ask(
        self,
        start: bytes,
        end: bytes,
        body: bytes,
        most: int,
        on_data: Callable[[bytes], None] | None,
        deadline: float,
        idle: float,
        permit: Callable[[], bool] | None = None,
    ) -> asyncio.Future[Answer]:
        """The answer to one request, of `start` and `end` of its head and its body, is to come there, or `Lost`; not
        `sent` where it is certain that nobody has read of it. Whoever awaits it and is cancelled says so: `leave`.
        Raises `Held`, and waits for another request, where the permit is not given."""
        transport = self._transport
        if transport is None or transport.is_closing() or not self._is_fit():
            self.abort()
            raise Lost("connection", "the server closed the connection", sent=False)
        if permit is not None and not permit():
            self.until = self._loop.time() + IDLE_S
            self._kept[self] = None
            raise Held
        self._reader.begin(most, on_data)
        self._idle, self._deadline, self.until = idle, deadline, deadline
        self._waiter = waiter = self._loop.create_future()
        self._written = self._writing
        self._writing += len(start) + len(end) + len(body)
        if len(body) <= ONE_WRITE:
            transport.write(b"".join((start, end, body)))
        else:
            transport.write(start + end)
            transport.write(memoryview(body))
        return waiter

    def leave(self) -> None:
        """Who waited for an answer was cancelled, perhaps in the moment in which it came."""
        if self._waiter is not None and self._waiter.cancelled():
            self.abort()

    def expire(self) -> None:
        """`until` has passed: nobody needed the connection for too long, or the answer takes too long."""
        silent = self.until < self._deadline
        text = f"the answer stopped for {self._idle:g} s" if silent else "no answer in time"
        self.fail(Lost("timeout", text, sent=True))
        self.abort()

    def fail(self, lost: Lost) -> None:
        """End the request under way."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(lost)

    def abort(self) -> None:
        """Close at once, whatever is yet to be written."""
        self._kept.pop(self, None)
        if self._transport is not None:
            self._transport.abort()

    def _is_fit(self) -> bool:
        """Whether it is open, and nothing has come that nobody asked for."""
        watch = self._watch
        if watch is None:
            return True
        # A new one of TLS may have session tickets to read.
        return not (watch.stirs() if self._writing else watch.closed())

    def _end(self, waiter: asyncio.Future[Answer]) -> None:
        """The answer is there, or what there is of it is no answer."""
        self._waiter = None
        reader, transport = self._reader, self._transport
        # A server may answer before it has read all, and what is yet to be written cannot be taken back.
        if reader.keep and transport and not transport.is_closing() and not transport.get_write_buffer_size():
            self.until = self._loop.time() + IDLE_S
            self._kept[self] = None
        else:
            self.abort()
        error = reader.error
        if error is None:
            waiter.set_result(reader.take())
        else:
            garbled = isinstance(error, Garbled)
            waiter.set_exception(Lost("connection", f"no whole answer: {error}", sent=True) if garbled else error)

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._socket = transport.get_extra_info("socket")
        self._watch = None if self._socket is None else tcp.Watch(self._socket)
        self._tls = transport.get_extra_info("sslcontext") is not None
        self.until = self._loop.time() + IDLE_S  # and not since the dialling began: that may have taken longer
        self._home.add(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():  # nobody asked: a server that is about to close
            self.abort()
            return
        if self._idle:
            self.until = min(self._deadline, self._loop.time() + self._idle)
        if self._reader.feed(self._buffer[:nbytes]):
            self._end(waiter)

    def connection_lost(self, exc: Exception | None) -> None:
        self._home.discard(self)
        self._kept.pop(self, None)
        reader, waiter = self._reader, self._waiter
        self._transport = self._watch = None
        if waiter is not None and not waiter.done():
            if reader.begun and exc is None:
                reader.end()
                self._end(waiter)
            else:
                waiter.set_exception(self._lost(reader, exc))
        reader.close()
        self.gone.set_result(None)

    def _lost(self, reader: Reader, error: Exception | None) -> Lost:
        why = reason(error)[0] if isinstance(error, OSError) else "the server closed it"
        if reader.begun:
            return Lost("connection", f"the connection broke in the middle of the answer ({why})", sent=True)
        # A write that fails with EPIPE was preceded by a FIN, too.
        closed = not self._tls and (error is None or isinstance(error, BrokenPipeError))
        unread = closed and tcp.unread(self._written, tcp.state(self._socket))
        return Lost("connection", f"the connection broke before an answer came ({why})", sent=not unread)
