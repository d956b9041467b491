"""The proxies of the environment: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, read as `urllib` reads them."""

from __future__ import annotations

from base64 import b64encode
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from weaverant.engines.http.client.network import Origin
from weaverant.engines.http.client.transport import Lost


class Proxy:
    """An HTTP proxy. Its password is in `authorization` and nowhere that is shown."""

    __slots__ = ("authorization", "host", "port")

    def __init__(self, host: str, port: int, authorization: str | None) -> None:
        self.host = host
        self.port = port
        self.authorization = authorization
        """The value of a `Proxy-Authorization` header."""

    def __repr__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def proxy_for(origin: Origin) -> Proxy | None:
    """The proxy to take to a server, as the environment is now; `Lost` where it names one that is none of HTTP.

    Loopback addresses go through it, too, unless NO_PROXY names them.
    """
    scheme = "https" if origin.tls else "http"
    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    if not found or proxy_bypass(origin.authority):
        return None
    parts = urlsplit(found if "://" in found else f"http://{found}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port:
        raise Lost("connection", _unusable(scheme, parts.scheme), sent=False, final=True)
    if parts.username is None:
        return Proxy(parts.hostname, port, None)
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.hostname, port, f"Basic {b64encode(login.encode()).decode()}")


def refused(proxy: Proxy, status: int) -> Lost:
    """What it means that a proxy answered CONNECT with another status than 2xx."""
    hint = ""
    if status == 407:
        hint = "; it wants a user and a password, as in HTTPS_PROXY=http://user:password@host:port"
    text = f"the proxy {proxy!r} refused to connect us ({status}){hint}"
    return Lost("connection", text, sent=False, final=400 <= status < 500)


def _unusable(scheme: str, kind: str) -> str:
    return (
        f"the environment's proxy for {scheme} (or ALL_PROXY) is of kind {kind[:12]!r}; expected http://host:port. "
        f"Set {scheme.upper()}_PROXY to an HTTP proxy, or name the server in NO_PROXY"
    )
