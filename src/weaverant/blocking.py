"""A run for those who have no event loop at hand: a script, a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterable, Callable, Iterator
from queue import Full, Queue

from weaverant.task import Task


class Blocking:
    """Iterates over a run from a thread without an event loop: the run has one of its own, in a thread of its own.
    `leave` is called when no more tasks are wanted."""

    def __init__(self, run: AsyncIterable[Task], leave: Callable[[], None]) -> None:
        self._run = run
        self._leave = leave
        self._tasks: Queue[Task | BaseException | None] = Queue(1_000)

    def __iter__(self) -> Iterator[Task]:
        # A daemon, because a workflow that does not yield would keep the process for ever: Ctrl-C waits for the run's
        # end, and a second one for nothing.
        thread = threading.Thread(target=self._work, name="weaverant-run", daemon=True)
        thread.start()
        try:
            while (got := self._tasks.get()) is not None:
                if isinstance(got, BaseException):
                    raise got
                yield got
        finally:
            self._leave()
            while thread.is_alive():
                self._drain()
                thread.join(0.01)

    def _drain(self) -> None:
        while not self._tasks.empty():
            self._tasks.get_nowait()

    def _work(self) -> None:
        try:
            asyncio.run(self._feed())
        except BaseException as error:  # handed to the thread that iterates
            self._tasks.put(error)
        self._tasks.put(None)

    async def _feed(self) -> None:
        async for task in self._run:
            try:
                self._tasks.put_nowait(task)
            except Full:  # wait apart: the loop serves the calls in flight
                await asyncio.to_thread(self._tasks.put, task)
