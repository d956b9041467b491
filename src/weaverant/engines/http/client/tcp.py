"""What the kernel knows of a connection, read before a request is written and again when no answer came.

A server closes connections that nobody used for a while; its FIN may be under way while a request is written. Whether
the request was read decides whether it may be sent again: one that a server has read may have been worked on and
billed. Time does not tell (a server can crash as fast as it can time out), but acknowledgements do: where the
connection ended with a FIN, and not one byte of the request was acknowledged, then no process has read of it, since a
FIN acknowledges all that came before it. A reset proves nothing: it is also how a process aborts that has read all.
Neither does the farewell of TLS: it is sent before the connection is closed, and what comes meanwhile may be read.
"""

from __future__ import annotations

import socket
import struct
import sys
from fcntl import ioctl
from termios import FIONREAD
from typing import Any

_LINUX = sys.platform == "linux"
_SIZE = 128
"""Bytes of `struct tcp_info` up to and with `tcpi_bytes_acked`, of Linux 4.1 and later."""
_ACKED = struct.Struct("=Q").unpack_from
_ESTABLISHED = 1


def state(connection: Any) -> bytes:
    """`struct tcp_info` of a socket; empty where there is none. Takes about a microsecond."""
    if not _LINUX or connection is None:
        return b""
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SIZE)
    except (OSError, ValueError):  # closed: asyncio's sockets raise the one, uvloop's the other
        return b""


def is_open(connection: Any, state: bytes) -> bool:
    """False once either side has closed, which those who use the connection may not have been told yet."""
    if connection is not None and connection.fileno() < 0:
        return False
    return not state or state[0] == _ESTABLISHED


def untidy(connection: Any) -> bool:
    """Whether bytes have come that nobody has read: what a server sends unasked is no answer to the next request.
    Takes about a microsecond."""
    if connection is None:
        return False
    try:
        return any(ioctl(connection.fileno(), FIONREAD, b"\0\0\0\0"))
    except (OSError, ValueError):
        return False


def unread(before: bytes, after: bytes) -> bool:
    """Whether nothing that was written between the two states has reached the other side. False where unknown."""
    if len(before) < _SIZE or len(after) < _SIZE:
        return False
    (acked,), (acked_now,) = _ACKED(before, _SIZE - 8), _ACKED(after, _SIZE - 8)
    # Where acknowledgements are counted the opening of the connection was the first; zero says that they are not.
    return acked > 0 and acked == acked_now
