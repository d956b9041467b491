"""A forward proxy for tests, as a process: CONNECT tunnels, and plain requests that name the whole URL.

`python -m weaverant.testing.proxy` prints its port as its first line. With --credentials it refuses with 407 whoever
does not send them. GET /stats, asked of itself, tells what it did. A connection carries one
request and is closed after its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import ProxyHandler, build_opener

from weaverant.testing.child import Child, live

CHUNK = 1 << 16
_OWN = (b"proxy-authorization:", b"proxy-connection:", b"connection:")


class Proxy:
    """`credentials` are what a client must send after the word Basic; empty: nothing."""

    def __init__(self, credentials: str = "") -> None:
        self._credentials = credentials
        self._counts = Counter({"connects": 0, "forwarded": 0, "refused": 0, "unreachable": 0})
        self._targets: Counter[str] = Counter()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            await self._proxied(head, reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of both sides is gone, and so is the other now
        finally:
            writer.close()

    async def _proxied(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *headers = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        method, target, _ = line.decode("latin-1").split(" ", 2)
        if target == "/stats":
            _say(writer, "200 OK", json.dumps({**self._counts, "targets": self._targets}))
        elif not self._allowed(headers):
            self._counts["refused"] += 1
            _say(writer, "407 Proxy Authentication Required", "who are you?", 'Proxy-Authenticate: Basic realm="mock"')
        else:
            place = urlsplit(target if "//" in target else f"//{target}")
            await self._forward(method, place.hostname or "", place.port or 80, head, reader, writer)

    async def _forward(
        self, method: str, host: str, port: int, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(host, port)
        except OSError:
            self._counts["unreachable"] += 1
            _say(writer, "502 Bad Gateway", f"no connection to {host}:{port}")
            return
        self._targets[f"{host}:{port}"] += 1
        if method == "CONNECT":
            self._counts["connects"] += 1
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            self._counts["forwarded"] += 1
            up_writer.write(_origin_form(head))
        await _both_ways((reader, up_writer), (up_reader, writer))

    def _allowed(self, headers: list[bytes]) -> bool:
        expected = f"basic {self._credentials}".encode()
        found = (line.partition(b":")[2].strip() for line in headers if line.lower().startswith(_OWN[0]))
        return not self._credentials or any(each[:6].lower() + each[6:] == expected for each in found)


class MockProxy(Child):
    """`with MockProxy() as proxy:` runs the proxy as a process of its own on a free port of 127.0.0.1."""

    def __init__(self, user: str = "", password: str = "", *, port: int = 0) -> None:
        super().__init__("weaverant.testing.proxy", port)
        self._login = (user, password)

    def options(self) -> Sequence[str]:
        return [f"--credentials={b64encode(':'.join(self._login).encode()).decode()}"] if self._login[0] else []

    @property
    def address(self) -> str:
        """Without credentials."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """With the credentials it wants, if any: what HTTP_PROXY would hold."""
        user, password = (quote(part, safe="") for part in self._login)
        return f"http://{user}:{password}@127.0.0.1:{self.port}" if user else self.address

    def stats(self) -> dict[str, Any]:
        """`connects`: tunnels opened, `forwarded` plain requests, `refused` with 407, `unreachable` with 502;
        `targets`: how often each host:port was reached."""
        with build_opener(ProxyHandler({})).open(f"{self.address}/stats", timeout=10) as response:
            return json.load(response)


def _say(writer: asyncio.StreamWriter, status: str, text: str, *headers: str) -> None:
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(text)}", "Connection: close", *headers, "", text)
    writer.write("\r\n".join(lines).encode())


def _origin_form(head: bytes) -> bytes:
    """The request as its server wants it: the path alone, nothing that was for the proxy, and a close at its end."""
    line, *headers = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, version = line.split(b" ", 2)
    parts = urlsplit(target.decode("latin-1"))
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    kept = [each for each in headers if not each.lower().startswith(_OWN)]
    return b"\r\n".join([b" ".join((method, path.encode("latin-1"), version)), *kept, b"Connection: close", b"", b""])


async def _both_ways(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Pass on what comes, until both sides have ended or one is lost."""
    try:
        async with asyncio.TaskGroup() as group:
            for source, target in ways:
                group.create_task(_pass_on(source, target))
    except* OSError:
        pass
    finally:
        for _, target in ways:
            target.close()


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        target.write(data)
        await target.drain()
    if target.can_write_eof():
        target.write_eof()


async def serve(proxy: Proxy, port: int, with_parent: bool) -> None:
    """Serve until cancelled, or until standard input closes."""
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=1 << 20, backlog=16_384)
    await live(server, with_parent)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m weaverant.testing.proxy", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--credentials", default="", help="USER:PASSWORD in base64; empty: anybody may use it")
    parser.add_argument("--with-parent", action="store_true", help="end when standard input closes")
    found = parser.parse_args()
    try:
        asyncio.run(serve(Proxy(found.credentials), found.port, found.with_parent))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
