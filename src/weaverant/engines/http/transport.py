"""The seam to an HTTP client: one request with a deadline over pooled connections, and what may become of it.

`fast.py` is our own HTTP/1.1 on httptools, `dependable.py` is aiohttp. Both never follow a redirect, never keep a
cookie, verify certificates against the system's trust store (and SSL_CERT_FILE), and use the proxies of the
environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

CONNECT_S = 10.0
"""Seconds until a connection must stand, TLS and proxy included."""

IDLE_S = 30.0
"""Seconds after which a connection that nobody uses is closed."""


class Answer(NamedTuple):
    """A whole answer. `headers` have names in lower case, of a repeated one the last; `body` is decompressed."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    too_large: bool = False
    """The body went past the limit: it was cut off, and the connection closed."""


class Lost(Exception):
    """No whole answer came.

    `kind` is `timeout` or `connection`. `sent`: the request may have reached the server, which may have worked on it
    and bill it. `final`: another try would end the same way (a certificate that is not trusted).
    """

    def __init__(self, kind: str, text: str, *, sent: bool, final: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.sent = sent
        self.final = final


class Transport(Protocol):
    """Belongs to the event loop of its first request."""

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
        """The answer, within `seconds`, or `Lost`.

        A body longer than `most` bytes, after decompression, is cut off. `idle` is how many seconds may pass without
        a byte once the answer has begun (0: any). With `on_data` the pieces of a body of status 200 go there as they
        come, and not into the answer. Cancelling closes the connection.
        """
        ...

    async def close(self) -> None:
        """Close all connections. Requests in flight are `Lost`, of kind `connection`; so is every later one."""
        ...
