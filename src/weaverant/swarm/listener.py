"""How links come to be: one side listens, the other dials."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Self

from weaverant.errors import UserError, WeaverantError
from weaverant.swarm.link import WINDOW, Link, Serve
from weaverant.swarm.lost import LinkLost
from weaverant.swarm.shared import SHARE_FROM

HANDSHAKE_SECONDS = 5.0
MOST_HALF_OPEN = 256
"""Connections that have not proven anything yet; of more, the oldest is dropped."""


def answers_nothing(link: Link, kind: str, body: Any) -> None:
    """The `Serve` of who only asks."""
    raise WeaverantError(f"nobody answers {kind!r} here")


async def dial(
    address: str,
    key: bytes,
    name: str,
    serve: Serve,
    timeout: float = HANDSHAKE_SECONDS,
    *,
    window: int = WINDOW,
    share: int | None = SHARE_FROM,
) -> Link:
    """A link to who listens at `host:port`. `LinkLost` where nobody answers within `timeout` seconds, and `WrongKey`
    where who answers does not hold the key. `share`: bytes from which a text crosses but once; None or 0: never."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address!r} is no address; expected host:port")
    loop = asyncio.get_running_loop()
    up = asyncio.Event()
    made = Link(key, name, serve, lambda _: up.set(), True, window, share or 0)
    made.name = address
    made.lost.add_done_callback(lambda _: up.set())
    try:
        async with asyncio.timeout(timeout):
            await loop.create_connection(lambda: made, host.strip("[]"), int(port))
            await up.wait()
    except TimeoutError:
        made.close()
        raise LinkLost(f"nobody at {address} said who it is within {timeout:g} s") from None
    except asyncio.CancelledError:
        made.close()
        raise
    except OSError as error:
        raise LinkLost(f"nobody listens at {address}: {error}") from None
    if made.reason:
        raise made.gone()
    return made


def check_host(host: str) -> None:
    """`UserError` where nobody can listen there, or nobody would find who does."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UserError(_no_host(host, f"no address is known for it ({error})")) from None
    for family, kind, protocol, _, address in found:
        if ip_address(str(address[0]).partition("%")[0]).is_unspecified:
            raise UserError(_no_host(host, "it stands for all of them, and others could not find it by that"))
        try:
            with socket.socket(family, kind, protocol) as tried:
                tried.bind(address)
        except OSError as error:
            why = f"{address[0]} cannot be listened at here ({error.strerror or error})"
            raise UserError(_no_host(host, why)) from None


def _no_host(host: str, why: str) -> str:
    return (
        f"--host {host!r}: {why}. Expected one address of this machine that the other peers reach, such as its one in "
        "their network (`hostname -I` lists them); without --host peers of this machine alone find each other"
    )


class Listener:
    """Takes links at an address."""

    def __init__(self, server: asyncio.Server, links: set[Link]) -> None:
        self._server = server
        self._links = links

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        key: bytes,
        name: str,
        serve: Serve,
        linked: Callable[[Link], None] = lambda _: None,
        *,
        window: int = WINDOW,
        share: int | None = SHARE_FROM,
    ) -> Self:
        """`port` 0: any that is free. `linked` is called with each link whose other side has proven itself."""
        links, half_open = set[Link](), dict[Link, asyncio.TimerHandle]()
        loop = asyncio.get_running_loop()

        def proven(link: Link) -> None:
            if (timer := half_open.pop(link, None)) is not None:
                timer.cancel()
            linked(link)

        def over(link: Link) -> None:
            links.discard(link)
            if (timer := half_open.pop(link, None)) is not None:
                timer.cancel()

        def arrived() -> Link:
            link = Link(key, name, serve, proven, False, window, share or 0)
            link.lost.add_done_callback(lambda _: over(link))
            links.add(link)
            half_open[link] = loop.call_later(HANDSHAKE_SECONDS, link.close)
            if len(half_open) > MOST_HALF_OPEN:
                oldest = next(iter(half_open))
                half_open.pop(oldest).cancel()
                oldest.close()
            return link

        return cls(await loop.create_server(arrived, host, port), links)

    @property
    def address(self) -> str:
        """`host:port`, as it was bound."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def close(self) -> None:
        """Take no more links, and close those that are up."""
        self._server.close()
        links = list(self._links)
        for link in links:
            link.close()
        await asyncio.gather(*(link.lost for link in links))
        await self._server.wait_closed()
