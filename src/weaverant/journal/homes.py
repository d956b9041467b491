"""The journals of a run: its own, and one for each peer that worked on it; and how one of those is ended for good.

`peers/EPOCH/` is a peer's home. It has one writer, ever. Whoever ends it, the peer in leaving or the others once it is
unheard, puts a fence there: what stands in it behind the fence never counts, whatever its writer does when it wakes up,
and whatever the clocks say.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import msgspec
from msgspec import Struct

from weaverant.errors import JournalCorrupt, JournalError, is_full
from weaverant.journal.disk import sync_path
from weaverant.journal.segment import EVENTS, HEADER_BYTES, Segment, segment_numbers, segment_path

ROOM = 16_384
"""Bytes that a home keeps free for its fence."""
OWN = 0
"""The epoch that stands for the run's own journal, which sessions of one process write."""


class Fence(Struct, frozen=True):
    """Where a home ends: at an offset of a segment, the first being 1; (0, 0) for one without events."""

    segment: int
    offset: int
    why: str = ""


class Fenced(OSError):
    """Somebody has ended the home, so nothing that is written there now counts."""


def home_of(run: Path, epoch: int) -> Path:
    """The directory whose `journal/` is the one of this epoch."""
    return run / "peers" / f"{epoch:06}" if epoch else run


def epochs_of(run: Path) -> list[int]:
    """The epochs of all peers that ever worked on the run, ascending."""
    try:
        return sorted(int(name) for name in os.listdir(run / "peers") if name.isdecimal())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JournalError(f"the peers of the run {str(run)!r} cannot be listed: {error}") from error


def new_epoch(run: Path) -> int:
    """Make the home of a new peer. Two that ask at once get different ones. Raises `OSError`."""
    peers = run / "peers"
    peers.mkdir(exist_ok=True)
    while True:
        epoch = max(epochs_of(run), default=OWN) + 1
        with suppress(FileExistsError):
            home_of(run, epoch).mkdir()
            make_room(home_of(run, epoch))
            return epoch


def make_room(home: Path) -> None:
    """So that there is some for a fence on a full disk. Raises `OSError`."""
    _make_durable(home / "room", bytes(ROOM))


def is_fenced(home: Path) -> bool:
    """Whether nothing that is written to this home from now on counts."""
    try:
        os.stat(home / "fenced")
    except FileNotFoundError:
        return False
    return True


def fence_of(home: Path) -> Fence | None:
    """Where the home ends; None while its writer may go on."""
    path = home / "fence"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Fence)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError(f"the fence {str(path)!r} cannot be read: {error}") from error
    except msgspec.DecodeError as error:
        raise JournalCorrupt(f"the fence {str(path)!r} is damaged: {error}. Put it back from a copy") from None


def fence(home: Path, why: str) -> Fence:
    """End the home, and tell where. Of several that do so at once all get the same answer. Raises `OSError`.

    First the mark that it is fenced, after which its writer acknowledges nothing more: it looks for the mark between
    making a write durable and acknowledging it. Only then the end is looked for, behind all that was acknowledged.
    """
    if (there := fence_of(home)) is not None:
        return there
    own = home / f"fence.{token_hex(8)}.tmp"
    try:
        try:
            _put_fence(home, own, why)
        except OSError as error:
            if not is_full(error):
                raise
            os.unlink(home / "room")
            _put_fence(home, own, why)
    finally:
        with suppress(OSError):
            os.unlink(own)
    with suppress(OSError):
        os.unlink(home / "room")
    sync_path(home)
    found = fence_of(home)
    assert found is not None
    return found


def _put_fence(home: Path, own: Path, why: str) -> None:
    _make_durable(home / "fenced", b"")
    segment, offset = _end_of(home / "journal")
    _make_durable(own, msgspec.json.encode(Fence(segment, offset, why)))
    with suppress(FileExistsError):
        os.link(own, home / "fence")


def set_fence(home: Path, end: Fence) -> None:
    """Put there what is known from elsewhere, unless there is a fence. Raises `OSError`."""
    own = home / f"fence.{token_hex(8)}.tmp"
    try:
        _make_durable(home / "fenced", b"")
        _make_durable(own, msgspec.json.encode(end))
        with suppress(FileExistsError):
            os.link(own, home / "fence")
    finally:
        with suppress(OSError):
            os.unlink(own)
    sync_path(home)


def _end_of(journal: Path) -> tuple[int, int]:
    """Behind the last whole frame of events."""
    for number in reversed(segment_numbers(journal)):
        with Segment(segment_path(journal, number)) as segment:
            if not segment.begun():
                continue
            trailer = segment.trailer()
            if trailer is not None:
                return number, trailer.events_end
            sync_path(segment.path)  # what its writer has not synced yet may be found here, and must stay
            ends = [frame.end for frame in segment.frames() if frame.kind == EVENTS]
            return number, ends[-1] if ends else HEADER_BYTES
    return 0, 0


def _make_durable(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        os.write(file, data)
        os.fsync(file)
    finally:
        os.close(file)
    sync_path(path.parent)
