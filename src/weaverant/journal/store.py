"""The files under a journal: appends frames to the open segment, seals it, repairs what a crash left.

Used by one thread at a time. A failed write or sync ends the journal for good: after a failed fsync the system
may have dropped the pages, so trying again could report as safe what is not. Each frame is synced before the next is
written: a power cut keeps any part of what was not synced, and a good frame behind a bad one would be damage.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import zstandard

from weaverant.errors import JournalError, UserError
from weaverant.journal.chain import Shipper
from weaverant.journal.codec import finish_payload
from weaverant.journal.disk import Disk
from weaverant.journal.homes import Fenced
from weaverant.journal.index import SegmentIndex, encode_index, rebuild
from weaverant.journal.segment import (
    EVENTS,
    HEADER_BYTES,
    MAJOR,
    MAP,
    MINOR,
    SUMMARY,
    Segment,
    pack_frame,
    pack_header,
    pack_trailer,
    segment_numbers,
    segment_path,
)


class Repair(NamedTuple):
    """What opening found: the last segment was not sealed, and `cut` bytes of an unfinished write were removed."""

    segment: int
    cut: int


class SegmentStore:
    """The segment files of one journal directory, open for appending. Call `recover` first."""

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        sync: bool,
        fenced: Callable[[], bool] | None = None,
        shipper: Shipper | None = None,
    ) -> None:
        """`fenced` is for a journal that others may end: whether they have. With a `shipper` a store is what counts:
        what is written goes there first, as one piece, and the file is a copy of it."""
        self._directory = directory
        self._disk = disk
        self._sync = sync
        self._fenced = fenced
        self._shipper = shipper
        self._unsent: list[bytes] = []
        """What is to be in the file, and goes to the store before."""
        self._zstd = zstandard.ZstdCompressor(level=1)
        self._number = 0
        self._file = -1
        self._size = 0
        self._good = 0

    def recover(self) -> Repair | None:
        """Make every segment there whole and sealed. `JournalCorrupt` where that would lose an event."""
        try:
            self._disk.make_directory(self._directory.parent)
            self._disk.make_directory(self._directory)
            numbers = segment_numbers(self._directory)
            for number in numbers[:-1]:
                with Segment(segment_path(self._directory, number)) as segment:
                    require_sealed(segment)
            self._number = len(numbers)
            return self._recover_last() if numbers else None
        except OSError as error:
            raise self.give_up(error) from error

    def write(self, payloads: Sequence[tuple[bytearray, int]], index: SegmentIndex) -> int:
        """Append payloads (each with its number of events) as frames and sync them. Gives the segment's size."""
        if self._file < 0:
            self._begin()
        for payload, count in payloads:
            finish_payload(payload, count)
            index.sizes.append(self._append(EVENTS, payload))
            self._settle()
        self._ship()
        if self._fenced is not None and self._fenced():
            raise Fenced("the others have not heard of this peer for too long, and go on with its rows")
        return self._size

    def seal(self, index: SegmentIndex) -> None:
        """Close the open segment with its index. The next write begins another."""
        if self._file < 0:
            return
        events_end = self._size
        maps: list[int] = []
        for payload in index.map_payloads():
            maps.append(self._size)
            self._append(MAP, payload)
            self._sync_file()
        summary = self._size
        self._append(SUMMARY, encode_index(index.summary(maps, self._number)))
        self._sync_file()
        self._put(pack_trailer(events_end, summary))
        self._settle()
        self._ship()
        self.close()

    def give_up(self, error: OSError) -> JournalError:
        """After an `OSError` nothing is written any more. Gives back the room that the unfinished group took; what
        remains of it is cut at the next opening."""
        try:
            ours = self._fenced is None and self._shipper is None
            if self._file >= 0 and ours:  # behind a fence that others set there must be no less than there was
                self._disk.truncate(self._file, self._good)
                self._disk.sync(self._file)
        except OSError:
            pass
        self.close()
        if isinstance(error, Fenced):
            failed = JournalError(f"the journal {str(self._directory)!r} was ended by others: {error}")
        else:
            failed = JournalError(
                f"the journal {str(self._directory)!r} cannot be written: {error.strerror or error} "
                f"(segment {self._number:06}). All acknowledged steps are safe; free or repair the disk, then resume"
            )
        failed.__cause__ = error
        return failed

    def close(self) -> None:
        """Let go of the open segment as it is."""
        if self._file >= 0:
            self._disk.close(self._file)
            self._file = -1

    def _begin(self) -> None:
        self._size = self._good = 0
        path = segment_path(self._directory, self._number + 1)
        self._file = self._disk.create(path)
        self._number += 1
        self._disk.sync_directory(self._directory)
        self._put(pack_header())
        self._sync_file()
        self._size = HEADER_BYTES

    def _append(self, kind: int, payload: bytes | bytearray) -> int:
        data = pack_frame(kind, payload, self._size, self._zstd)
        self._put(data)
        self._size += len(data)
        return len(data)

    def _put(self, data: bytes) -> None:
        if self._shipper is None:
            self._disk.write(self._file, data)
        else:
            self._unsent.append(data)

    def _ship(self) -> None:
        """Where there is a store: what was put is there, and only then in the file."""
        if self._shipper is not None and self._unsent:
            data, self._unsent = b"".join(self._unsent), []
            self._shipper.piece(data)
            self._disk.write(self._file, data)

    def _settle(self) -> None:
        self._sync_file()
        self._good = self._size

    def _sync_file(self) -> None:
        if self._sync and self._shipper is None:
            self._disk.sync(self._file)

    def _recover_last(self) -> Repair | None:
        path = segment_path(self._directory, self._number)
        with Segment(path) as segment:
            if not segment.begun():
                return self._remove(path, segment.size())
            refuse_newer(segment)
            if segment.trailer() is not None:
                self._sync_sealed(path)
                return None
            index, end = rebuild(segment)
            size = segment.size()
        if not index.sizes:
            return self._remove(path, size)
        self._size = self._good = end  # first of all: where a call fails, `give_up` cuts the file there
        self._file = self._disk.reopen(path)
        self._disk.truncate(self._file, end)
        self._sync_file()
        self.seal(index)
        return Repair(self._number, size - end)

    def _sync_sealed(self, path: Path) -> None:
        """Who sealed it may have been killed before the trailer was on the medium; another segment follows it now."""
        self._size = self._good = path.stat().st_size
        self._file = self._disk.reopen(path)
        self._sync_file()
        self.close()

    def _remove(self, path: Path, size: int) -> Repair:
        """A segment that never got an event: its number is used again."""
        self._disk.remove(path)
        self._disk.sync_directory(self._directory)
        self._number -= 1
        return Repair(self._number + 1, size)


def require_sealed(segment: Segment) -> None:
    """All segments but the last are sealed: without its trailer, one has lost its end."""
    if not segment.begun() or segment.trailer() is None:
        raise segment.corrupt(segment.size(), "its trailer is missing or harmed, though a later segment follows")


def refuse_newer(segment: Segment) -> None:
    """Only reading is possible across minor formats: a fold that skips what it does not know may decide wrongly."""
    if segment.minor > MINOR:
        raise UserError(
            f"segment {str(segment.path)!r} has format {MAJOR}.{segment.minor}; this weaverant can read it but "
            f"writes {MAJOR}.{MINOR} and would continue the run without what it does not know. Upgrade it: "
            "pip install --upgrade weaverant"
        )
