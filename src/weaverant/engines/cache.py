"""An engine around an engine that never asks the same thing twice.

A reply is kept under (engine identity, request, seed, occurrence), so eight samples of one prompt stay eight.
Failures are not kept. The store is SQLite in WAL mode: a kill of the process loses no stored reply, and many
processes of one machine may share the folder (not on a network file system).
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from asyncio import Future
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from weaverant.errors import StepFailed, UserError
from weaverant.message import Reply, Request, digest
from weaverant.protocols import CallContext, Engine, Note

T = TypeVar("T")

_log = logging.getLogger(__name__)

Flight: TypeAlias = "Future[Reply | StepFailed | None]"
"""A call on its way upstream: its outcome, or None if the caller gave it up."""


class Cached:
    """Answers from `directory` what it holds, asks `engine` for the rest and keeps it.

    Equal calls at the same time make one call upstream. A reply from the cache says `requests=0, cost=0` and
    keeps its tokens. A store that cannot be written any more is reported once in the log; the replies still flow.
    """

    def __init__(self, engine: Engine, directory: str | Path) -> None:
        self._engine = engine
        self._store = _Store(Path(directory))
        self._thread = ThreadPoolExecutor(1, "weaverant-cache")
        self._flights: dict[bytes, Flight] = {}
        self._writable = True

    @property
    def identity(self) -> str:
        return self._engine.identity

    async def generate(self, request: Request, ctx: CallContext) -> Reply:
        key = _key(self._engine.identity, request, ctx.occurrence)
        while flight := self._flights.get(key):
            outcome = await asyncio.shield(flight)
            if isinstance(outcome, StepFailed):
                raise StepFailed(outcome.kind, outcome.text, outcome.detail)
            if outcome is not None:
                return _free(outcome)
        return await self._fly(key, request, ctx)

    def unbounded(self, request: Request) -> str:
        ask: Callable[[Request], str] | None = getattr(self._engine, "unbounded", None)
        return "" if ask is None else ask(request)

    def worst(self, request: Request) -> float | None:
        ask: Callable[[Request], float | None] | None = getattr(self._engine, "worst", None)
        return None if ask is None else ask(request)

    @property
    def claims(self) -> bool:
        return getattr(self._engine, "claims", False)

    def refuses(self, request: Request) -> str:
        ask: Callable[[Request], str] | None = getattr(self._engine, "refuses", None)
        return "" if ask is None else ask(request)

    def status(self) -> list[str]:
        tell: Callable[[], list[str]] | None = getattr(self._engine, "status", None)
        return [] if tell is None else tell()

    def notes(self) -> list[Note]:
        tell: Callable[[], list[Note]] | None = getattr(self._engine, "notes", None)
        return [*self.status()] if tell is None else tell()

    async def close(self) -> None:
        await self._engine.close()
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    async def _fly(self, key: bytes, request: Request, ctx: CallContext) -> Reply:
        """Look up or ask, while equal calls wait for what comes of it."""
        flight: Flight = asyncio.get_running_loop().create_future()
        self._flights[key] = flight
        try:
            kept = await self._in_thread(self._store.get, key)
            reply = await self._ask(key, request, ctx) if kept is None else _free(kept)
            flight.set_result(reply)
            return reply
        except StepFailed as failure:
            flight.set_result(failure)
            raise
        finally:
            del self._flights[key]
            if not flight.done():
                flight.set_result(None)

    async def _ask(self, key: bytes, request: Request, ctx: CallContext) -> Reply:
        reply = await self._engine.generate(request, ctx)
        try:
            await self._in_thread(self._store.put, key, reply)
        except sqlite3.Error as error:  # the reply is paid for: it is worth more than its copy
            if self._writable:
                _log.warning("the cache %s cannot be written (%s); going on without it", self._store, error)
            self._writable = False
        return reply

    def _in_thread(self, function: Callable[..., T], *args: object) -> Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *args)


class _Store:
    """Replies by key. After it is opened, one thread uses it."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "replies.sqlite"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None
        try:
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(_TABLE)
        except sqlite3.Error as error:
            self._file.close()
            raise self._unusable(error) from None

    def __str__(self) -> str:
        return str(self._path)

    def get(self, key: bytes) -> Reply | None:
        try:
            with closing(self._file.execute("SELECT reply FROM replies_1 WHERE key = ?", (key,))) as found:
                row: tuple[bytes] | None = found.fetchone()
        except sqlite3.Error as error:
            text = f"the cache {self} cannot be read ({error}); delete it or choose another"
            raise StepFailed("cache", text) from None
        try:
            return None if row is None else _decode(row[0])
        except msgspec.MsgspecError:  # written by another version: ask again and replace it
            return None

    def put(self, key: bytes, reply: Reply) -> None:
        self._file.execute("INSERT OR REPLACE INTO replies_1 VALUES (?, ?)", (key, _encode(reply))).close()

    def close(self) -> None:
        self._file.close()

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"the cache {str(self._path)!r} cannot be used: {error}. Expected a folder of this machine that can be "
            "written, new or made by weaverant; choose another, as in cache:OTHER|MODEL, or delete that file."
        )


def _key(identity: str, request: Request, occurrence: int) -> bytes:
    messages = [message.digest for message in request.messages]
    how = (request.sampling, request.tools, request.output, request.seed, occurrence)
    return digest(_encode_key((identity, request.agent, request.model, messages, *how)))


def _free(reply: Reply) -> Reply:
    usage = msgspec.structs.replace(reply.usage, requests=0, cost=0.0, unsure=0.0)
    return msgspec.structs.replace(reply, usage=usage)


_TABLE = "CREATE TABLE IF NOT EXISTS replies_1 (key BLOB PRIMARY KEY, reply BLOB)"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
_encode_key = msgspec.msgpack.Encoder(order="deterministic").encode
