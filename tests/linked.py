"""Two ends of a link in one process, for tests."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from weaverant.swarm import link as links
from weaverant.swarm.link import Link
from weaverant.swarm.listener import Listener, dial

KEY = secrets.token_bytes(32)


def echo(link: Link, kind: str, body: Any) -> Any:
    return body


@asynccontextmanager
async def pair(there: links.Serve = echo, here: links.Serve = echo, **options: Any) -> AsyncIterator[tuple[Link, Link]]:
    """The dialer's side and the listener's."""
    came: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
    listener = await Listener.open("127.0.0.1", 0, KEY, "listener", there, came.set_result, **options)
    link = await dial(listener.address, KEY, "dialer", here, **options)
    try:
        yield link, await came
    finally:
        link.close()
        await listener.close()


def go(test: Callable[[], Any]) -> None:
    """Run it; what no one retrieved or awaited is an error."""
    unheard: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
        async with asyncio.timeout(15):
            await test()
        gc.collect()

    asyncio.run(main())
    assert unheard == []


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds; an error where it does not within some seconds."""
    for _ in range(5_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to pass")
