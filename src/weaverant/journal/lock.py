"""One writer at a time: a lock on a run directory that disappears with the process which holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from weaverant.errors import JournalError, RunLocked

SIZE = 4_096
"""Bytes of the lock file from the start: what is written into it later takes no room on a full disk."""

MOST_WORDS = 600

LOOKS = 10
"""Times that a lock is tried, 2 ms apart."""


class Holder(Struct, frozen=True):
    """Who holds a run: what the lock file says, for people. The lock itself is the system's (flock)."""

    pid: int
    host: str
    since: float
    """Unix seconds."""
    failed: str = ""
    """Why its journal could not be written any more."""


class RunLock:
    """Held from construction to `release`. The file stays: removing it would let two writers in."""

    def __init__(self, directory: Path) -> None:
        self._file = -1
        self._held = False
        path = directory / "lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            self._take()
            self._held = True
            self._sign()
        except BlockingIOError:
            text = _who(self._file, directory)
            self.release()
            raise RunLocked(text) from None
        except OSError as error:
            self.release()
            raise JournalError(
                f"the run directory {str(directory)!r} cannot be locked for writing: {error.strerror or error}. "
                "Expected a writable directory with room on its disk"
            ) from error

    def fail(self, why: str) -> None:
        """Note why the journal could not be written any more, for `last_words`. The disk may be full: this takes no
        room on it."""
        with suppress(OSError):
            self._sign(why)

    def release(self) -> None:
        """Let the next writer in, whatever processes were forked meanwhile and live on: they share the lock, and would
        keep it after a mere close. Harmless where nothing is held."""
        if self._held:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._held = False
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _take(self) -> None:
        """`BlockingIOError` where another process writes. One that only looks (`is_locked`) is gone in a moment."""
        for left in reversed(range(LOOKS)):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(0.002)
            else:
                return

    def _sign(self, failed: str = "") -> None:
        holder = Holder(os.getpid(), socket.gethostname(), time.time(), failed[:MOST_WORDS])
        os.pwrite(self._file, msgspec.json.encode(holder).ljust(SIZE), 0)
        os.ftruncate(self._file, SIZE)


def is_locked(directory: Path) -> bool:
    """Whether a process writes the run."""
    try:
        file = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


def has_ended(directory: Path) -> bool:
    """Whether the last that wrote here was a process of this host, and writes no more. False where nobody can tell: a
    lock that another host holds may not be seen here."""
    try:
        holder = msgspec.json.decode((directory / "lock").read_bytes()[:SIZE], type=Holder)
    except (OSError, msgspec.DecodeError):
        return False
    return holder.host == socket.gethostname() and not is_locked(directory)


def last_words(directory: Path) -> str:
    """Why the last process could not write the journal to its end; empty where it did not say so."""
    try:
        with (directory / "lock").open("rb") as file:
            return msgspec.json.decode(file.read(SIZE), type=Holder).failed
    except (OSError, msgspec.DecodeError):
        return ""


def _who(file: int, directory: Path) -> str:
    try:
        holder = msgspec.json.decode(os.pread(file, SIZE, 0), type=Holder)
    except (msgspec.DecodeError, OSError):
        who, stop = "another process", "stop it"
    else:
        since = datetime.fromtimestamp(holder.since).astimezone().isoformat(" ", "seconds")
        who = f"process {holder.pid} on host {holder.host!r} since {since}"
        stop = f"stop it (kill {holder.pid})"
    return (
        f"the run {str(directory)!r} is being written by {who}. One run has one writer: wait for it to end or {stop}, "
        "then try again; reading the run is possible at any time"
    )
