"""The seam to an HTTP client: one request with a deadline over pooled connections, and what may become of it.

`fast.py` is our own HTTP/1.1 on httptools, `dependable.py` is aiohttp. Both never follow a redirect, never keep a
cookie, verify certificates against the system's trust store (and SSL_CERT_FILE), and use the proxies of the
environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY). All endpoints of an event loop share one client of a kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Protocol

from msgspec import Struct

from weaverant.errors import UserError

CONNECT_S = 10.0
"""Seconds until a connection must stand, TLS and proxy included."""

IDLE_S = 4.0
"""Seconds after which a connection that nobody uses is closed: before the server does it, since a request that meets
a closing connection may be lost. uvicorn (vLLM, SGLang), Node and llama.cpp close after 5."""

MOST_HEAD = 65_536
"""Bytes of an answer's status line and headers."""

CLOSED = "the client was closed"


class Answer(Struct, frozen=True):
    """A whole answer. `headers` have names in lower case, of a repeated one the last; `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False
    """The body went past the limit: it was cut off, and the connection closed."""


class Lost(Exception):
    """No whole answer came.

    `kind` is `timeout` or `connection`. `sent`: the request may have reached the server, which may have worked on it
    and bill it. `final`: another try would end the same way (a certificate that is not trusted). The text may quote
    an answer's head, uncut, so that a key in it can still be found and hidden.
    """

    def __init__(self, kind: str, text: str, *, sent: bool, final: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.sent = sent
        self.final = final


class Held(Exception):
    """Nothing was written: the permit was not given."""


class Transport(Protocol):
    """Belongs to the event loop that made it."""

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
        """The answer, within `seconds`, or `Lost`; `ValueError` for a header with a line break. Headers given once must
        not be changed: the same object stands for the same headers.

        A body longer than `most` bytes, after decompression, is cut off. `idle` is how many seconds may pass without
        a byte once the answer has begun (0: any). With `on_data` the pieces of a body of status 200 go there as they
        come, and not into the answer; what it raises ends the request. Cancelling closes the connection. A POST is
        sent once more only where it is certain that nobody has read the first (see `tcp.py`).

        The `permit` is looked at right before the request is written, on a connection that stands: `Held` where it is
        not given. Of a request longer than the system takes at once the rest follows without another look.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Requests in flight are `Lost`, of kind `connection`; so is every later one."""
        ...


class _Shared:
    """A client and how many use it. Closing `life` closes it, which the last user does, or else the event loop when it
    ends: a loop closes all generators that were begun in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, kind: str) -> None:
        self.transport = _KINDS[kind]()
        self.users = 0
        self.life = _life(loop, kind, self.transport)
        with suppress(StopIteration):  # how a step ends that yields
            self.life.__anext__().send(None)


async def _life(loop: asyncio.AbstractEventLoop, kind: str, transport: Transport) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        del _clients[loop, kind]
        await transport.close()


def choose(client: str) -> str:
    """`fast` or `dependable`: as asked, or the fast one where it can be imported. `UserError` where it cannot."""
    try:
        import_module("httptools")
    except ModuleNotFoundError:
        if client == "fast":
            raise UserError(
                "client=fast needs the package httptools, which is not installed. "
                "Install it (pip install httptools), or take client=dependable"
            ) from None
        return "dependable"
    return client or "fast"


def acquire(client: str = "") -> Transport:
    """The client of this kind that the running event loop shares, to be `release`d in it, or closed with it."""
    for place in tuple(_clients):
        if place[0].is_closed():  # by somebody who left its generators open
            _clients.pop(place, None)
    loop, kind = asyncio.get_running_loop(), choose(client)
    shared = _clients.get((loop, kind))
    if shared is None:
        shared = _clients[loop, kind] = _Shared(loop, kind)
    shared.users += 1
    return shared.transport


async def release(transport: Transport) -> None:
    """Give back what `acquire` gave. When the last user has done so, the client is closed."""
    here = asyncio.get_running_loop()
    for (loop, _), shared in tuple(_clients.items()):
        if shared.transport is transport and loop is here:
            shared.users -= 1
            if not shared.users:
                await shared.life.aclose()


def _fast() -> Transport:
    return import_module("weaverant.engines.http.client.fast").Fast()


def _dependable() -> Transport:
    return import_module("weaverant.engines.http.client.dependable").Dependable()


_KINDS: dict[str, Callable[[], Transport]] = {"fast": _fast, "dependable": _dependable}
_clients: dict[tuple[asyncio.AbstractEventLoop, str], _Shared] = {}
