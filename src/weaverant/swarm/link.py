"""A link: two peers of one run talk directly, over one TCP connection.

Either side asks, tells and serves. What is said in one turn of the loop goes out in one write, and there is at most one
write a millisecond unless much is said. A side has at most as many asks open as the other allows (its window); who asks
more waits. Answers never wait, because their room was reserved by the ask, and bytes are always read: two full peers
cannot block each other.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

from weaverant.errors import WeaverantError
from weaverant.swarm.frames import (
    FLUSH_AT,
    UNDECODABLE,
    UNENCODABLE,
    Answered,
    Asked,
    Cancelled,
    Denied,
    Dropped,
    Frame,
    Freed,
    Hello,
    Released,
    Said,
    Split,
    Told,
)
from weaverant.swarm.inbox import Inbox
from weaverant.swarm.keys import Handshake
from weaverant.swarm.lost import LinkLost, Refused, WrongKey
from weaverant.swarm.outbox import Outbox
from weaverant.swarm.serving import Serving

__all__ = ["Link", "LinkLost", "Refused", "Serve", "WrongKey"]

Serve: TypeAlias = "Callable[[Link, str, Any], Awaitable[Any] | Any]"
"""`(link, kind, body)` gives the answer, at once or awaited. A `WeaverantError` is told to who asked."""

WINDOW = 1_024
"""Asks of the other side that may be open at once."""
READ_BYTES = 1 << 17
"""Read at once."""
HIGH_MARK = 1 << 19
"""Bytes that wait to be written from which asks wait."""
SECONDS_A_WRITE = 0.001
"""What is said so soon after a write waits for what else is said: where calls come one by one, some thousand a second,
that saves a third of the CPU (`bench/bench_links.py`, `paced`). What is said seldom goes at once."""
CLOSE_SECONDS = 2.0
"""What is still to be written gets so long when a link is closed."""
Wanted: TypeAlias = "tuple[asyncio.Future[Any], str, Any, str, Callable[[], None] | None]"


class Link(asyncio.BufferedProtocol):
    """One side of it. Made by `dial` and `Listener`; then it is up until `lost` is done."""

    def __init__(
        self,
        key: bytes,
        name: str,
        serve: Serve,
        linked: Callable[[Link], None],
        dialing: bool,
        window: int,
        share: int,
    ) -> None:
        self.name = ""
        """What the other side calls itself."""
        self.epoch = 0
        """Of the peer at the other side, where whoever dialled knows it."""
        self.sent = 0
        """Bytes."""
        self.received = 0
        self.outbox = Outbox(share)
        self.inbox = Inbox()
        self.reason = ""
        """Why it is down; empty while it is not."""
        self._end = LinkLost
        self._abort: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._shake: Handshake | None = Handshake(key, dialing)
        self._our_name = name
        self._linked: Callable[[Link], None] | None = linked
        self._transport: asyncio.Transport | None = None
        self._frame = Frame()
        self._flushed = 0.0
        """When the last frame was written."""
        self._split = Split(self.inbox.hook)
        self._room = memoryview(bytearray(READ_BYTES))
        """Where what comes is read to: asyncio's way takes new memory for each read, and gives most of it back."""
        self._our_window, self._window = window, 0
        self._serving = Serving(lambda kind, body: serve(self, kind, body), self._say, self.outbox, window)
        self._paused = False
        self._count = 0
        self._open: dict[int, asyncio.Future[Any]] = {}
        """What we asked."""
        self._queue: deque[Wanted] = deque()
        """What we would ask, in order."""

    @property
    def open(self) -> int:
        """Asks that have no answer yet, with those that wait to be sent."""
        return len(self._open) + len(self._queue)

    @property
    def ready(self) -> bool:
        """Whether an ask would be sent at once."""
        return not self._queue and len(self._open) < self._window and not self._paused

    async def ask(
        self,
        kind: str,
        body: Any,
        timeout: float | None = None,
        owner: str = "",
        sent: Callable[[], None] | None = None,
    ) -> Any:
        """The answer. `Refused` with the other side's text, `LinkLost`, `TimeoutError` after so many seconds.

        With an `owner`, texts that were said before are not sent again until `release`, here and in the answer. `sent`
        is called once it leaves the queue. Cancelling cancels the work on the other side. What is no plain data
        raises as msgspec does.
        """
        if timeout is not None:
            async with asyncio.timeout(timeout):
                return await self.ask(kind, body, None, owner, sent)
        if self.reason:
            raise self.gone()
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.ready:
            self._send(future, kind, body, owner, sent)
        else:
            self._queue.append((future, kind, body, owner, sent))
        try:
            return await future
        except asyncio.CancelledError:
            self._take_back(future)
            raise

    def tell(self, kind: str, body: Any, owner: str = "") -> None:
        """Say it, and wait for nothing. Lost where the link is down. No window bounds it: for news, not for work."""
        self.outbox.adopt(owner)
        try:
            self._say(Told(kind, self.outbox.pack(body, owner)))
        except UNENCODABLE:
            self.outbox.undo(owner)
            raise

    def release(self, owner: str) -> None:
        """Both sides may forget what the owner held. Its asks are to be over."""
        if self.outbox.release(owner):
            self._say(Released(owner))

    def close(self) -> None:
        """What was said before is still sent; what is asked is lost, what is served is cancelled."""
        self._down("it was closed here")

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(HIGH_MARK)
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        assert self._shake is not None
        self._write(self._shake.opening())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self.reason:
            return
        data: bytes | memoryview = self._room[:nbytes]
        try:
            if self._shake is not None:
                self._write(self._shake.hear(bytes(data)))
                if not self._shake.proven:
                    return
                data, self._shake = self._shake.rest, None
                self._say(Hello(self._our_name, self._our_window))
            frames = self._split.feed(data)
        except WrongKey as error:
            self._down(str(error), WrongKey)
        except UNDECODABLE as error:
            self._down(f"it said what cannot be understood ({error})")
        else:
            for frame in frames:
                for said in frame:
                    self._hear(said)

    def eof_received(self) -> None:
        self._down("the other side closed it")

    def connection_lost(self, exc: Exception | None) -> None:
        self._down(f"the connection broke ({exc})" if exc else "the other side closed it")
        if self._abort is not None:
            self._abort.cancel()
        if not self.lost.done():
            self.lost.set_result(None)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._admit()

    # What we say

    def _send(
        self, future: asyncio.Future[Any], kind: str, body: Any, owner: str, sent: Callable[[], None] | None
    ) -> None:
        number = self._count
        if not self.outbox.adopt(owner):
            owner = ""  # the other side would wait for a release that never comes
        try:
            self._say(Asked(number, kind, self.outbox.pack(body, owner), owner))
        except UNENCODABLE:
            self.outbox.undo(owner)
            raise
        self._count += 1
        self._open[number] = future
        if sent is not None:
            sent()

    def _say(self, said: Said) -> None:
        if self.reason:
            return
        frame = self._frame
        if not frame.count:
            loop, due = self._loop, self._flushed + SECONDS_A_WRITE
            if loop.time() < due:
                loop.call_at(due, self._flush)
            else:
                loop.call_soon(self._flush)
        if frame.add(said) >= FLUSH_AT:
            self._flush()

    def _flush(self) -> None:
        frame = self._frame
        if frame.count and not self.reason:
            freed = self.outbox.freed()
            if freed is not None:
                frame.add(Freed(freed))
            self._write(frame.take())
            self._flushed = self._loop.time()

    def _write(self, data: bytes | bytearray) -> None:
        transport = self._transport
        if data and transport is not None:
            self.sent += len(data)
            transport.write(data)

    def _admit(self) -> None:
        """Send what waited, as far as there is room."""
        queue = self._queue
        while queue and len(self._open) < self._window and not self._paused and not self.reason:
            wanted = queue.popleft()
            if wanted[0].done():
                continue
            try:
                self._send(*wanted)
            except UNENCODABLE as error:
                wanted[0].set_exception(error)

    def _take_back(self, future: asyncio.Future[Any]) -> None:
        """Its credit comes back once the other side has stopped working on it."""
        for number, asked in self._open.items():
            if asked is future:
                self._say(Cancelled(number))
                return

    # What they say

    def _hear(self, said: Said) -> None:
        if self.reason:
            return
        if self._linked is not None:
            self._hello(said, self._linked)
        elif isinstance(said, Asked):
            if not self._serving.asked(said):
                self._down("it asks more than it may")
        elif isinstance(said, Answered):
            self._settle(said.number, said.body, None)
        elif isinstance(said, Told):
            self._serving.told(said)
        elif isinstance(said, Denied):
            self._settle(said.number, None, Refused(said.text))
        elif isinstance(said, Dropped):
            self._settle(said.number, None, LinkLost("it was cancelled"))
        elif isinstance(said, Cancelled):
            self._serving.stop(said.number)
        elif isinstance(said, Released):
            self.outbox.release(said.owner)
        elif isinstance(said, Hello):
            self._down("it greeted twice")

    def _hello(self, said: Said, linked: Callable[[Link], None]) -> None:
        if not isinstance(said, Hello) or said.window < 1:
            self._down("it did not greet")
            return
        self.name, self._window, self._linked = said.name, said.window, None
        linked(self)

    def _settle(self, number: int, body: Any, error: WeaverantError | None) -> None:
        future = self._open.pop(number, None)
        if future is None:
            self._down("it answered what was not asked")
            return
        if not future.done():
            if error is None:
                future.set_result(body)
            else:
                future.set_exception(error)
        if self._queue:
            self._admit()

    # Its end

    def gone(self) -> LinkLost:
        """What to raise once it is down."""
        return self._end(f"the link to {self.name!r} is down: {self.reason}")

    def _down(self, reason: str, end: type[LinkLost] = LinkLost) -> None:
        if self.reason:
            return
        self._flush()
        self.reason, self._end = reason, end
        for future in (*self._open.values(), *(wanted[0] for wanted in self._queue)):
            if not future.done():
                future.set_exception(self.gone())
        self._open.clear()
        self._queue.clear()
        self._serving.stop_all()
        transport = self._transport
        if transport is not None:
            transport.close()
            self._abort = self._loop.call_later(CLOSE_SECONDS, transport.abort)
