"""What both clients share: where a URL leads, which headers may be sent, whom TLS trusts, how an error reads."""

from __future__ import annotations

import os
import re
import socket
import ssl
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from weaverant.engines.http.client.transport import Lost

ACCEPT_ENCODING = "gzip, deflate"

_ERRNO = re.compile(r"\[Errno (\d+)\]")
_NOT_IN_A_HEADER = re.compile(r"[^\x01-\x09\x0b\x0c\x0e-\xff]")


class Origin(NamedTuple):
    """One server. Connections to it are interchangeable."""

    tls: bool
    host: str
    port: int

    @property
    def authority(self) -> str:
        """As a `Host` header names it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


@lru_cache(1024)
def locate(url: str) -> tuple[Origin, str]:
    """The server of an http(s) URL, and the path and query to ask it for, in characters that a request may carry."""
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    name = parts.hostname or ""
    try:
        host = name if name.isascii() else name.encode("idna").decode()
        host.encode("idna")  # a name with an empty or an overlong part
    except UnicodeError:
        raise Lost("connection", f"{name!r} is no host name", sent=False, final=True) from None
    target = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*") + (
        f"?{quote(parts.query, _QUERY)}" if parts.query else ""
    )
    return Origin(tls, host, parts.port or (443 if tls else 80)), target


@lru_cache(256)
def header_lines(headers: tuple[tuple[str, str], ...]) -> str:
    """The lines of a request's head. `ValueError` for a header that would end its line, or that is no Latin-1; it may
    hold a key, so only its name is shown."""
    for name, value in headers:
        if _NOT_IN_A_HEADER.search(name + value):
            raise ValueError(f"the header {name[:40]!r} holds a line break, a null, or a letter beyond Latin-1")
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


@lru_cache(1)
def _trust(file: str | None, folder: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def trust() -> ssl.SSLContext:
    """Verifies against the system's trust store, or SSL_CERT_FILE and SSL_CERT_DIR as they are now. Reading the
    store takes longer than a request, so that all connections share one."""
    return _trust(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


def reason(error: OSError) -> tuple[str, bool]:
    """Why there is no connection, in words, and whether another try would end the same way."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message.rstrip('.')}", True
    if isinstance(error, ssl.SSLError):
        # A connection that ends in the handshake may be a server that is starting, or has too much to do.
        plainly = " (does it speak http:// and no TLS?)" if error.reason == "WRONG_VERSION_NUMBER" else ""
        words = (error.reason or "no reason given").lower().replace("_", " ")
        return f"TLS failed: {words}{plainly}", not isinstance(error, ssl.SSLEOFError)
    if isinstance(error, socket.gaierror):
        return f"its name is not known ({(error.strerror or 'no reason given').lower()})", False
    # Of several addresses tried, asyncio joins the errors into one text, without their numbers.
    numbers = [error.errno] if error.errno else sorted({int(found) for found in _ERRNO.findall(str(error))})
    return " and ".join(os.strerror(number).lower() for number in numbers) or _plain(error), False


def _plain(error: OSError) -> str:
    return " ".join(str(error).split()) or "the connection broke"


_QUERY = "/%:=&?~+!$,;'@()*"
