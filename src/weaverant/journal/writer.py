"""The journal of a run: events go in on the event loop, one thread writes them in groups.

Group commit clocks itself: while the thread writes a group the next one gathers. Where the last group had several
acknowledgements to give, more are to come, and the next gathers for at least `GATHER_S`: each group costs a write, an
fdatasync and two changes of thread, some 100 us of CPU, and a model call takes far longer than what it waits here.
A lone task, whose groups have one, waits for nothing. An event of 1.2 kB costs the loop about 2 us
(`bench/bench_pieces.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NoReturn

from weaverant.errors import JournalError
from weaverant.events import Event
from weaverant.journal.acks import Acks
from weaverant.journal.blobs import BlobStore
from weaverant.journal.codec import ARRAY_HEAD_BYTES, encode_into, new_payload
from weaverant.journal.disk import Disk
from weaverant.journal.homes import OWN, home_of, is_fenced
from weaverant.journal.index import SegmentIndex
from weaverant.journal.lock import RunLock
from weaverant.journal.shelf import shelf_of
from weaverant.journal.store import Repair, SegmentStore
from weaverant.journal.worker import ThreadWorker, Worker
from weaverant.protocols import Clock

SEGMENT_BYTES = 64 << 20
SEGMENT_TASKS = 32_768
"""A segment ends at this many tasks, too: its index is held in memory until then."""
GATHER_S = 0.005
"""Seconds from one group to the next while several steps end at about the same time."""
FRAME_BYTES = 1 << 20
"""A frame is closed at this payload size, so that readers work in bounded memory."""


class _Group:
    """Events that become durable together. With `seal`, the segment ends after them."""

    __slots__ = ("acks", "blobs", "index", "payloads", "seal")

    def __init__(self, index: SegmentIndex) -> None:
        self.index = index
        self.payloads: list[tuple[bytearray, int]] = []
        self.acks: list[Callable[[], None]] = []
        self.blobs: dict[bytes, str] = {}
        self.seal = False


class SegmentJournal:
    """Implements `protocols.Journal` on the files of a run directory.

    Opening takes the run's lock (`RunLocked`), and repairs and seals what a crash left (`JournalCorrupt` where that
    would lose events); `repair` tells what was done. `sync=False` leaves durability to the system: killing the
    process loses nothing acknowledged, a power cut may. `on_failure` is called once, on the loop, when writing fails.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        sync: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        on_failure: Callable[[JournalError], None] | None = None,
        disk: Disk | None = None,
        worker: Worker | None = None,
        clock: Clock = time,
        epoch: int = OWN,
    ) -> None:
        """`disk`, `worker` and `clock` are for simulated ones. With an `epoch` it is a peer's own journal, whose home
        is new: others may end it, and then nothing more of it is acknowledged."""
        directory = Path(directory)
        disk = disk or Disk()
        home = home_of(directory, epoch)
        self._lock = RunLock(home)
        try:
            shipper = shelf_of(directory).shipper(epoch)
            fenced = partial(is_fenced, home) if epoch and shipper is None else None
            self._store = SegmentStore(home / "journal", disk, sync, fenced, shipper)
            self.repair: Repair | None = self._store.recover()
        except BaseException:
            self._lock.release()
            raise
        self._shipper = shipper
        self._blobs = BlobStore(directory / "blobs", disk, epoch, shipper)
        self._segment_bytes = segment_bytes
        self._on_failure = on_failure
        self._failure: JournalError | None = None
        self._told = False
        self._closed = False
        self._armed = False
        """Whether a group is being written or about to be."""
        self._last = 0.0
        """When the last group was handed to the thread."""
        self._several = False
        """Whether it had several acknowledgements."""
        self._size = 0
        self._frame = 0
        self._index = SegmentIndex()
        self._group = _Group(self._index)
        self._payload: bytearray = new_payload()
        self._events: list[Event] = []
        """Those in it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushes: set[asyncio.Future[None]] = set()
        self._due: asyncio.TimerHandle | None = None
        """When the group that gathers is handed over."""
        self._clock = clock
        self._broken = False
        """Whether a group could not be written: known to the worker alone."""
        self._worker = worker or ThreadWorker()

    def append(
        self, event: Event, durable: Callable[[], None] | None = None, blobs: Mapping[bytes, str] | None = None
    ) -> None:
        """See `protocols.Journal`. The event is encoded before this returns."""
        if self._closed:
            self._refuse()
        size = len(self._payload)
        if size >= FRAME_BYTES:
            self._end_payload()
            size = ARRAY_HEAD_BYTES
        payload = self._payload
        try:
            encode_into(event, payload, size)
        except BaseException:
            del payload[size:]
            raise
        self._events.append(event)
        if durable is not None:
            self._group.acks.append(durable)
        if blobs:
            self._group.blobs.update(blobs)
        if not self._armed:
            self._arm()

    async def flush(self) -> None:
        """Return when everything appended so far is durable and its acknowledgements are delivered."""
        if self._closed:
            self._refuse()
        try:
            await self._flushed()
        except JournalError:
            self._told = True
            raise

    async def close(self) -> None:
        """Flush, seal the segment, let go of the run directory. Raises `JournalError` if nobody was told of it yet."""
        if not self._closed:
            self._group.seal = True
            flushed = self._flushed()
            self._closed = True
            await asyncio.gather(flushed, return_exceptions=True)
        await asyncio.to_thread(self._stop)
        if self._failure is not None and not self._told:
            self._refuse()

    def still_ours(self) -> bool:
        """Whether no other host goes on with this journal, for one that has nothing to write now. Asks the store, where
        there is one: not for the event loop. Raises `OSError`."""
        return self._shipper is None or self._shipper.is_last()

    def _stop(self) -> None:
        self._worker.stop()
        self._store.close()
        if self._failure is not None:
            self._lock.fail(str(self._failure))
        self._lock.release()

    def _flushed(self) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        self._flushes.add(done)
        done.add_done_callback(self._flushes.discard)
        self._group.acks.append(lambda: None if done.done() else done.set_result(None))
        if not self._armed or asyncio.get_running_loop() is not self._loop:  # or the loop that had it armed has ended
            self._arm()
        elif self._due is not None:  # whoever flushes waits for it
            self._due.cancel()
            self._send()
        return done

    def _refuse(self) -> NoReturn:
        if self._failure is None:
            raise JournalError("the journal is closed: append and flush before close(), or open the run again")
        self._told = True
        raise self._failure

    def _arm(self) -> None:
        self._armed = True
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._acks = loop, Acks(loop, self._clock)
        loop.call_soon(self._send_in_time)

    def _end_payload(self) -> None:
        self._index.note(self._events, self._frame)
        self._group.payloads.append((self._payload, len(self._events)))
        self._payload, self._events = new_payload(), []
        self._frame += 1

    def _send_in_time(self) -> None:
        loop = self._loop
        assert loop is not None
        if self._failure is not None:
            return
        if self._several and not self._flushes and loop.time() < self._last + GATHER_S:
            self._due = loop.call_at(self._last + GATHER_S, self._send)
        else:
            self._send()

    def _send(self) -> None:
        """Hand the gathered group to the thread and begin the next. A full segment ends with this group."""
        if self._events:
            self._end_payload()
        group, self._due = self._group, None
        assert self._loop is not None
        self._last, self._several = self._loop.time(), len(group.acks) > 1
        if self._size >= self._segment_bytes or len(self._index.tasks) >= SEGMENT_TASKS:
            group.seal = True
        if group.seal:
            self._index = SegmentIndex()
            self._frame = 0
        self._group = _Group(self._index)
        self._worker.do(partial(self._write, group))

    def _landed(self, group: _Group, size: int) -> None:
        self._size = 0 if group.seal else size
        if self._events or self._group.acks or self._group.payloads:
            self._send_in_time()
        else:
            self._armed = False
        self._acks.deliver(group.acks)

    def _fail(self, error: JournalError) -> None:
        if self._due is not None:
            self._due.cancel()
        self._failure = error
        self._closed = True
        for done in self._flushes:
            if not done.done():
                done.set_exception(error)
        if self._on_failure is not None:
            self._told = True
            self._on_failure(error)

    def _write(self, group: _Group) -> None:
        """The worker's part. Once a group could not be written, none that follows is."""
        if self._broken:
            return
        self._broken = True
        error: JournalError | None = JournalError("the journal's worker died of a bug: see its traceback above")
        try:
            self._write_group(group)
            self._broken, error = False, None
        except OSError as failure:
            error = self._store.give_up(failure)
        finally:
            if error is not None:
                self._post(self._fail, error)

    def _write_group(self, group: _Group) -> None:
        self._blobs.put(group.blobs)
        size = self._store.write(group.payloads, group.index) if group.payloads else self._size
        self._post(self._landed, group, size)
        if group.seal:
            self._store.seal(group.index)

    def _post(self, call: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass
