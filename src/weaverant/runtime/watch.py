"""Notices code that does not yield: while it holds the event loop, nothing else of the run goes on.

A thread asks the loop for a sign of life every `LOOK` seconds. How long the loop has been held is counted by the
thread's own looks: a machine that slept, or a process that was stopped meanwhile (SIGSTOP), is no stall.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from asyncio.events import Handle
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

from weaverant.errors import is_users
from weaverant.runtime.functions import functions
from weaverant.task import TaskRun

LOOK = 1.0
HELD = 5.0
"""Seconds, both. A loop that is held for `HELD` is told of."""

_CALLBACK: CodeType = Handle._run.__code__  # pyright: ignore[reportPrivateUsage]
"""What runs one callback of an event loop: the frames outside it are none of that callback's."""


class Watch:
    """Watches the running loop until it is closed; `tell` gets a line when a stall has lasted `HELD` seconds, from a
    thread, and one when it is over, on the loop, where it gets as well what is told of the loop's `functions`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._functions = functions()
        self._functions.tell = tell
        self._loop = asyncio.get_running_loop()
        self._watched = threading.get_ident()
        self._over = threading.Event()
        self._asked = False
        self._held = 0.0
        """Seconds since the last sign of life, up to the last look."""
        self._looked = time.monotonic()
        self._holder = ""
        """Who holds the loop, once that has been told."""
        threading.Thread(target=self._work, name="weaverant-watch", daemon=True).start()

    def close(self) -> None:
        self._over.set()
        self._functions.unheard(self._tell)

    def _work(self) -> None:
        while not self._over.wait(LOOK):
            self._held += self._passed()
            self._looked = time.monotonic()
            try:
                self._look()
            except RuntimeError:  # the loop was closed, and the run with it
                return

    def _passed(self) -> float:
        """Seconds since the last look, in which this process was alive."""
        return min(time.monotonic() - self._looked, 2 * LOOK)

    def _look(self) -> None:
        if not self._asked:
            self._asked = True
            self._loop.call_soon_threadsafe(self._alive)
        elif self._held >= HELD and not self._holder:
            frame = sys._current_frames().get(self._watched)  # pyright: ignore[reportPrivateUsage]
            self._holder = holder(frame)
            if self._holder:
                self._tell(
                    f"{self._holder} has held the event loop for {self._held:.0f} s: no model is asked and no reply is "
                    "taken meanwhile. Put heavy work into step(), which runs it in a thread, or process_step(), which "
                    "runs it in a process"
                )

    def _alive(self) -> None:
        if self._holder:
            seconds = self._held + self._passed()
            self._tell(f"{self._holder} let go of the event loop after {seconds:.0f} s; the run goes on")
        self._asked, self._held, self._holder = False, 0.0, ""


def holder(frame: FrameType | None) -> str:
    """Who runs in this frame of an event loop's thread, as `row 0.3.0 (w.py:9 in spin)`; empty where that is no code
    of the user's."""
    row = place = ""
    while frame is not None and frame.f_code is not _CALLBACK:
        if not place and is_users(frame.f_code.co_filename):
            place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        row = row or _row(frame)
        frame = frame.f_back
    if not place:
        return ""
    return f"row {row} ({place})" if row else place


def _row(frame: FrameType) -> str:
    """The key of the row that a frame of ours works on: it has the task as `self`, or as `run`."""
    if str(frame.f_globals.get("__name__")).startswith("weaverant."):
        for name in ("self", "run"):
            task = frame.f_locals.get(name)
            if isinstance(task, TaskRun):
                return task.row.key
    return ""
