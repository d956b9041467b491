"""What the kernel knows of a connection: looked at before a request is written, and when no answer came.

A server closes connections that nobody used for a while; its FIN may be under way while a request is written. Whether
the request was read decides whether it may be sent again: one that a server has read may have been worked on and
billed. Time does not tell (a server can crash as fast as it can time out), but acknowledgements do: where the
connection ended with a FIN, and not one byte of the request was acknowledged, then no process has read of it, since a
FIN acknowledges all that came before it. A reset proves nothing: it is also how a process aborts that has read all.
Neither does the farewell of TLS: it is sent before the connection is closed, and what comes meanwhile may be read.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from typing import Any

_LINUX = sys.platform == "linux"
_SIZE = 128
"""Bytes of `struct tcp_info` up to and with `tcpi_bytes_acked`, of Linux 4.1 and later."""
_ACKED = struct.Struct("=Q").unpack_from
_CLOSED: int = getattr(select, "POLLRDHUP", 0)
"""Elsewhere than on Linux an end is told as something to read."""


class Watch:
    """Looks whether a connection that waits for its next request is still fit for it. One look takes half a
    microsecond; asking for the state and for the count of unread bytes takes five."""

    __slots__ = ("_look",)

    def __init__(self, connection: Any) -> None:
        """Of a socket. It must not be used once that is closed."""
        watch = select.poll()
        watch.register(connection.fileno(), select.POLLIN | _CLOSED)
        self._look = watch.poll

    def closed(self) -> bool:
        """Whether the other side has closed, which those who use the connection may not have been told yet. What has
        come before that does not matter."""
        return any(events & ~select.POLLIN for _, events in self._look(0))

    def stirs(self) -> bool:
        """Whether anything has come that nobody has read, an end too: what a server sends unasked is no answer to the
        next request."""
        return bool(self._look(0))


def state(connection: Any) -> bytes:
    """`struct tcp_info` of a socket; empty where there is none."""
    if not _LINUX or connection is None:
        return b""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except (OSError, ValueError):  # closed: asyncio's sockets raise the one, uvloop's the other
        return b""


def unread(written: int, state: bytes) -> bool:
    """Whether nothing has reached the other side but the first `written` bytes. False where unknown."""
    if len(state) < _SIZE:
        return False
    (acked,) = _ACKED(state, _SIZE - 8)
    # Where acknowledgements are counted the opening of the connection was the first; zero says that they are not.
    return 0 < acked <= 1 + written
