"""What this host has of a store: copies of journals, brought up to date before they are read as files.

Pieces are written where they belong in the segment's file, so that several processes of a host may do so at once, and
also where the journal's own writer is one of them: all write the same bytes. A copy needs no sync: what is not whole
after a power cut is fetched again.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path
from threading import Lock

from weaverant.errors import JournalCorrupt
from weaverant.journal.chain import Chain, Shipper
from weaverant.journal.homes import OWN, Fence, fence_of, home_of, set_fence
from weaverant.journal.objects import Objects, Patient, open_objects, unreachable
from weaverant.journal.segment import MAGIC, Segment, is_whole, segment_path

AT_ONCE = 16
"""Objects that are fetched at once."""


class Copy:
    """This host's copy of one journal. `bring` may be called from several threads."""

    def __init__(self, chain: Chain, home: Path) -> None:
        self.end = 0
        """Bytes of the chain that are here."""
        self.ended = False
        """Its fence is here, and all that stands before it."""
        self._chain = chain
        self._home = home
        self._segment = 0
        self._start = 0
        """Where the segment begins in the chain."""
        self._lock = Lock()

    def bring(self) -> None:
        """Return when all is here that was there when this was called. Raises `OSError`, `JournalCorrupt`."""
        with self._lock:
            self.ended = self.ended or (self._chain.epoch != OWN and fence_of(self._home) is not None)
            if self.ended:
                return
            (self._home / "journal").mkdir(parents=True, exist_ok=True)
            left = [position for position in self._chain.positions() if position >= self.end]
            here = 0
            for position, follower in pairwise(left):
                data = self._found(position, follower)
                if data is None:
                    break
                self._take(position, data)
                here += 1
            for position, data in _fetched(self._chain.get, left[here:]):
                self._take(position, data, keep=True)

    def _found(self, position: int, follower: int) -> bytes | None:
        """The piece, where this host has it."""
        size = follower - position
        for number, offset in ((self._segment, position - self._start), (self._segment + 1, 0)):
            with suppress(FileNotFoundError), segment_path(self._home / "journal", number).open("rb") as file:
                data = os.pread(file.fileno(), size, offset)
                if len(data) == size and is_whole(data, offset):
                    return data
        return None

    def _take(self, position: int, data: bytes, keep: bool = False) -> None:
        if position != self.end:
            raise self._corrupt(min(position, self.end), "is missing or has another size than it should")
        if data[:1] == b"{":
            self._end()
            return
        if data[: len(MAGIC)] == MAGIC:
            self._segment, self._start = self._segment + 1, position
        offset = position - self._start
        if not self._segment or not is_whole(data, offset):
            raise self._corrupt(position, "is not whole, or was written to another place")
        if keep:
            self._write(offset, data)
        self.end = position + len(data)

    def _write(self, offset: int, data: bytes) -> None:
        path = segment_path(self._home / "journal", self._segment)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(file, data[done:], offset + done)
        finally:
            os.close(file)

    def _end(self) -> None:
        """The fence: where the events of the segment end, as far as it stands in the chain."""
        offset = self.end - self._start
        if self._segment:
            with Segment(segment_path(self._home / "journal", self._segment)) as segment:
                trailer = segment.trailer()
                if trailer is not None and segment.size() == offset:
                    offset = trailer.events_end
        set_fence(self._home, Fence(self._segment, offset, "as the store has it"))
        self.ended = True

    def _corrupt(self, position: int, what: str) -> JournalCorrupt:
        return JournalCorrupt(
            f"piece {position:015} of the journal {str(self._home)!r} {what} in the store. Nothing was changed. Put "
            "the object back from a copy of the store"
        )


class Mirror:
    """A run's directory on this host, of which the truth is in a store. Implements `Shelf`."""

    def __init__(self, run: Path, url: str) -> None:
        self.patient = Patient(open_objects(url))
        self.objects: Objects = self.patient
        self._run = run
        self._url = url
        self._copies: dict[int, Copy] = {}

    def shipper(self, epoch: int) -> Shipper:
        """For the one who writes this journal, of which all that the store has is here then."""
        chain, copy = self._chain(epoch), self._copy(epoch)
        if epoch == OWN:
            self.fetch((OWN,))
        return Shipper(chain, self.objects, copy.end)

    def fetch(self, epochs: Collection[int] | None = None) -> None:
        try:
            for epoch in (OWN, *self.epochs()) if epochs is None else epochs:
                self._copy(epoch).bring()
        except OSError as error:
            raise unreachable(self._url, error) from error

    def fence(self, epoch: int, why: str) -> None:
        chain, copy = self._chain(epoch), self._copy(epoch)
        chain.mark()
        while True:
            copy.bring()
            if copy.ended:
                return
            chain.fence(copy.end, why)  # or another piece was there first: look again

    def is_fenced(self, epoch: int) -> bool:
        return self._chain(epoch).is_marked()

    def epochs(self) -> list[int]:
        return sorted(int(name) for name in self.objects.names("peers") if name.isdecimal())

    def new_epoch(self) -> int:
        while True:
            epoch = max(self.epochs(), default=OWN) + 1
            if self.objects.create(f"peers/{epoch:06}/home", secrets.token_bytes(16)):
                home_of(self._run, epoch).mkdir(parents=True, exist_ok=True)
                return epoch

    def fetch_blob(self, path: Path) -> bool:
        try:
            data = self.objects.get(f"blobs/{path.parent.name}/{path.name}")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unreachable(self._url, error) from error
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{secrets.token_hex(6)}.tmp")
        unfinished.write_bytes(data)
        unfinished.replace(path)
        return True

    def fetch_blobs(self) -> int:
        """All that this host lacks; how many those were. Raises `JournalError`."""
        try:
            paths = [
                self._run / "blobs" / folder / name
                for folder in self.objects.names("blobs")
                for name in self.objects.names(f"blobs/{folder}")
                if len(folder) == 2 and name.endswith(".zst")
            ]
            lacking = [path for path in paths if not path.exists()]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                return sum(threads.map(self.fetch_blob, lacking))
        except OSError as error:
            raise unreachable(self._url, error) from error

    def _chain(self, epoch: int) -> Chain:
        return Chain(self.objects, epoch)

    def _copy(self, epoch: int) -> Copy:
        return self._copies.setdefault(epoch, Copy(self._chain(epoch), home_of(self._run, epoch)))


def _fetched(get: Callable[[int], bytes], positions: list[int]) -> Iterator[tuple[int, bytes]]:
    """The pieces in order, some at a time."""
    rest = iter(positions)
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while some := list(islice(rest, 4 * AT_ONCE)):
            yield from zip(some, threads.map(get, some), strict=True)
