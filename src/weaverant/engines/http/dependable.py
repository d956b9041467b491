"""The dependable HTTP client: aiohttp behind the seam."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping

import aiohttp
from yarl import URL

from weaverant.engines.http.transport import CONNECT_S, IDLE_S, Answer, Lost

LARGE_BODY = 1_000_000  # above 1 MiB aiohttp warns about raw bytes and wants a stream


class Dependable:
    """See `Transport`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

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
        place = URL(url, encoded=True)
        if self._closed:
            raise Lost("connection", "the client was closed", sent=False)
        if self._session is None:
            self._session = _session()
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(self._session, method, place, headers, body, most)
        except aiohttp.ConnectionTimeoutError:
            raise Lost("timeout", f"no connection within {CONNECT_S:g} s", sent=False) from None
        except TimeoutError:
            raise Lost("timeout", "no answer in time", sent=True) from None
        except (aiohttp.ClientError, OSError) as error:
            said = " ".join(str(error).split()) or type(error).__name__
            never = isinstance(error, aiohttp.ClientConnectorError)
            # A certificate that is not trusted now will not be in a second.
            final = isinstance(error, aiohttp.ClientSSLError)
            raise Lost("connection", said, sent=not never, final=final) from None

    async def close(self) -> None:
        self._closed = True
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: bytes,
        most: int,
    ) -> Answer:
        data = body if len(body) <= LARGE_BODY else io.BytesIO(body)
        async with session.request(method, url, data=data, headers=headers, allow_redirects=False) as response:
            chunks: list[bytes] = []
            size = 0
            while chunk := await response.content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > most:  # leaving the block now closes the connection
                    break
            found = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, found, b"".join(chunks) if size <= most else b"", size > most)


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=300, keepalive_timeout=IDLE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
    )
