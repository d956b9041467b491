"""The least that a durable hop can cost here: what no design with asyncio's engines and a journal can leave out.

Per hop: one turn of the row's own coroutine, one task of asyncio in which the engine answers, one digest of what was
asked, one event encoded as ours is, one acknowledgement from a group that a thread has compressed and synced. Nothing
else: no `gather`, time-outs or cancellation in a workflow, no replay, no index, no shared texts, no counts by agent, no
limits, no checks, no budget. A yardstick, never a way to run anything: what it writes could not be resumed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

import msgspec
import workloads
import zstandard

from weaverant import Reply, Request
from weaverant.events import Event, StepEnded
from weaverant.message import digest, user
from weaverant.protocols import CallContext

_encode_into = msgspec.msgpack.Encoder().encode_into


class Log:
    """Group commit: while a thread writes a group, the next one gathers."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY)
        self._loop = asyncio.get_running_loop()
        self._groups: SimpleQueue[tuple[bytearray, list[Callable[[], None]]] | None] = SimpleQueue()
        self._group: tuple[bytearray, list[Callable[[], None]]] = (bytearray(), [])
        self._busy = False
        self._thread = Thread(target=self._write)
        self._thread.start()

    def append(self, event: Event, durable: Callable[[], None]) -> None:
        payload, acks = self._group
        _encode_into(event, payload, -1)
        acks.append(durable)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._send)

    def close(self) -> None:
        self._groups.put(None)
        self._thread.join()
        os.close(self._file)

    def _send(self) -> None:
        self._groups.put(self._group)
        self._group = (bytearray(), [])

    def _write(self) -> None:
        compress = zstandard.ZstdCompressor(level=1).compress
        while (group := self._groups.get()) is not None:
            packed = compress(group[0])
            os.write(self._file, zlib.crc32(packed).to_bytes(4, "little") + packed)
            os.fdatasync(self._file)
            self._loop.call_soon_threadsafe(self._landed, group[1])

    def _landed(self, acks: list[Callable[[], None]]) -> None:
        if self._group[1]:
            self._send()
        else:
            self._busy = False
        self._tell(acks)

    def _tell(self, acks: list[Callable[[], None]]) -> None:
        for durable in acks:
            durable()


class Call:
    """What a workflow awaits: its request, and later the reply."""

    __slots__ = ("reply", "request")

    def __init__(self, request: Request) -> None:
        self.request = request

    def __await__(self) -> Generator[Call, None, Reply]:
        yield self
        return self.reply


class Row:
    """A workflow that is driven from one call to the next."""

    __slots__ = ("_ended", "_log", "_work", "key")

    def __init__(self, key: str, work: Coroutine[Any, Any, None], log: Log, ended: Callable[[], None]) -> None:
        self.key = key
        self._work = work
        self._log = log
        self._ended = ended

    def go_on(self) -> None:
        try:
            call: Call = self._work.send(None)
        except StopIteration:
            self._ended()
            return
        asyncio.Task(self._answer(call), loop=asyncio.get_running_loop())

    async def _answer(self, call: Call) -> None:
        request, began = call.request, time.monotonic()
        fingerprint = digest(b"".join([message.digest for message in request.messages]))
        reply = await _engine.generate(request, CallContext(self.key, "", 0, 0, ""))
        event = StepEnded(
            self.key, "", fingerprint, 0, "model", request.agent, "", {}, "reply", reply.message.content, began,
            time.monotonic(), time.time(), reply.usage, reply.model,
        )  # fmt: skip
        self._log.append(event, partial(self._show, call, reply))

    def _show(self, call: Call, reply: Reply) -> None:
        call.reply = reply
        self.go_on()


_engine = workloads.Dummy()


async def _w2(question: str, order: int) -> None:
    said = user(question)
    for hop in range(workloads.RING_HOPS):
        name = "right" if hop % 2 else "left"
        said = (await Call(Request(name, "default", (said,), seed=order * 31 + hop))).message


async def _weave(tasks: int, in_flight: int, path: Path) -> float:
    """CPU seconds."""
    log, ended, over = Log(path), 0, asyncio.Event()
    orders = iter(range(tasks))

    def start() -> None:
        for order in orders:
            Row(str(order), _w2(workloads.SHORT_QUESTIONS[order % 512], order), log, end).go_on()
            return

    def end() -> None:
        nonlocal ended
        ended += 1
        if ended == tasks:
            over.set()
        start()

    cpu = time.process_time()
    for _ in range(in_flight):
        start()
    await over.wait()
    cpu = time.process_time() - cpu
    log.close()
    return cpu


@contextmanager
def rare_collections() -> Iterator[None]:
    """The collector looks as seldom as it does in a run: at Python's own thresholds it would walk all rows in flight
    again and again."""
    thresholds = gc.get_threshold()
    gc.set_threshold(200_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def weave(tasks: int, in_flight: int) -> tuple[int, float, float]:
    """W2. Hops, CPU seconds, wall seconds."""
    wall = time.perf_counter()
    with rare_collections(), tempfile.TemporaryDirectory() as folder:
        cpu = asyncio.run(_weave(tasks, in_flight, Path(folder) / "log"))
    return tasks * workloads.RING_HOPS, cpu, time.perf_counter() - wall
