"""Where a journal's files are written: in a thread of its own, so that the event loop never waits for a disk."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Protocol

Work = Callable[[], None]


class Worker(Protocol):
    """Does pieces of work one after the other, in the order in which they came, elsewhere or later."""

    def do(self, work: Work) -> None:
        """Take it on and return at once. The work raises nothing."""
        ...

    def stop(self) -> None:
        """Return when all that was taken on is done; nothing follows."""
        ...


class ThreadWorker:
    """One thread."""

    def __init__(self) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="weaverant-journal", daemon=True)
        self._thread.start()

    def do(self, work: Work) -> None:
        self._work.put(work)

    def stop(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
