"""What a server lists: one GET, asked before any call is made, and so at once and within ten seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import msgspec
from msgspec import Struct

from weaverant.engines.http.address import Address
from weaverant.engines.http.chat.wire import shown
from weaverant.engines.http.client.transport import CONNECT_S, Lost, acquire, release
from weaverant.engines.http.key import Key

LONGEST = 64_000_000
"""Bytes of a list."""

T = TypeVar("T")


class NotListed(Exception):
    """The server gave no list. The text says what came instead; `status` is that of its answer, 0 without one."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


def list_models(address: Address, key: Key | None) -> list[str]:
    """The names of a server's models, or `NotListed`."""
    return [model.id for model in get(address, key, "models", _Models).data]


def get(address: Address, key: Key | None, path: str, kind: type[T]) -> T:
    """What is listed there, or `NotListed`."""
    return _waited(_get(address, key, path, kind))


async def _get(address: Address, key: Key | None, path: str, kind: type[T]) -> T:
    headers = {"Accept": "application/json", "User-Agent": "weaverant"}
    if key is not None:
        headers["Authorization"] = key.bearer()
    client = acquire(address.options.client)
    try:
        answer = await client.send("GET", address.url(path), headers, seconds=CONNECT_S, most=LONGEST)
        if answer.status != 200:
            raise NotListed(f"status {answer.status}: {shown(answer.body, key)}", answer.status)
        return msgspec.json.decode(answer.body if key is None else key.hide(answer.body), type=kind)
    except (Lost, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NotListed(shown(str(error).encode(errors="replace"), key)) from None
    finally:
        await release(client)


def _waited(work: Coroutine[None, None, T]) -> T:
    """Runs in a thread because the caller may already be inside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
