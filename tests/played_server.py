"""A server whose connections play a scene, and a client that meets it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ssl import SSLContext

import pytest

from weaverant.engines.http.client.transport import Answer, Lost, Transport, acquire, release

MOST = 60_000_000

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(client: str, main: Callable[[Transport], Awaitable]):
    """`main` in a loop of its own, after which nothing of the client may be left."""

    async def whole():
        before = asyncio.all_tasks()
        transport = acquire(client)
        try:
            found = await main(transport)
        finally:
            await release(transport)
        for _ in range(20):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        return found

    found = asyncio.run(whole())
    gc.collect()  # a connection that was left open warns now, and warnings are errors
    return found


@asynccontextmanager
async def wire(play: Play, host: str = "127.0.0.1", ssl: SSLContext | None = None) -> AsyncIterator[str]:
    """A server for whose every connection `play` is run; then the connection is closed. Gives its URL."""
    tasks: set[asyncio.Task] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await play(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, host, 0, limit=1 << 26, ssl=ssl)
    try:
        yield f"{'https' if ssl else 'http'}://{host}:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """A request's head and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    length = [line.partition(":")[2] for line in head.split("\r\n") if line.lower().startswith("content-length:")]
    return head, await reader.readexactly(int(length[0])) if length else b""


def answers(*pieces: bytes, pause: float = 0.0, again: bool = True) -> Play:
    """Answers every request of a connection with these pieces; without `again` only the first, and closes."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read(reader)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause)
            if not again:
                return

    return play


async def post(transport: Transport, url: str, body: bytes = b"{}", **options) -> Answer:
    return await transport.send("POST", url, {"X-A": "b"}, body, **{"seconds": 20.0, "most": MOST, **options})


def ask(client: str, play: Play, **options) -> Answer:
    """One request to a server that plays so."""

    async def main(transport: Transport) -> Answer:
        async with wire(play) as url:
            return await post(transport, url, **options)

    return run(client, main)


def lose(client: str, play: Play, **options) -> Lost:
    with pytest.raises(Lost) as caught:
        ask(client, play, **options)
    return caught.value
