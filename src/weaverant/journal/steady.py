"""Reading a run while its peers take over from each other.

Its journals are read one after the other. A row moves to another journal only once the one where it was has a fence: as
long as no fence was put while they were read, what was read stood there together at one moment. Else two of them may
contradict each other, and they are read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from weaverant.errors import JournalError
from weaverant.journal.homes import OWN, epochs_of, home_of, is_fenced

T = TypeVar("T")

TRIES = 6
PAUSE_S = 0.1
"""Seconds before they are read again; longer each time."""


def steadily(run: Path, read: Callable[[], T]) -> T:
    """What `read` makes of the run's journals; read again where peers were ended meanwhile. Where that goes on, what
    was read last. Raises what `read` raises where nothing has changed, or it goes on."""
    for tried in range(1, TRIES + 1):
        before, sizes = _fences(run), _sizes(run)
        try:
            found = read()
        except JournalError:
            if tried == TRIES or (before, sizes) == (_fences(run), _sizes(run)):
                raise
        else:
            if tried == TRIES or before == _fences(run):
                return found
        time.sleep(PAUSE_S * tried)
    raise AssertionError


def _fences(run: Path) -> list[int]:
    return [epoch for epoch in epochs_of(run) if is_fenced(home_of(run, epoch))]


def _sizes(run: Path) -> dict[str, int]:
    """The files of all journals, and how long they are."""
    found: dict[str, int] = {}
    for epoch in (OWN, *epochs_of(run)):
        with suppress(OSError):
            for path in (home_of(run, epoch) / "journal").iterdir():
                found[str(path)] = path.stat().st_size
    return found
