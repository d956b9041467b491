"""Threads for users' functions. Nobody can end a thread: one whose function was given up is left at it, another takes
its place, and neither holds up the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Work = tuple[Future[Any], Callable[[], Any]]

ABANDONED = 8
"""Threads that may be left at functions which were given up, for each that works."""


class StepThread(threading.Thread):
    """A thread of `Threads`."""


class Threads(Executor):
    """For `size` functions at once that are waited for: whoever submits sees to that. One that its caller gave up keeps
    its thread, and the next gets another, until `ABANDONED * size` are left so; then work waits for one of them to
    return, and `full` is called, each time."""

    def __init__(self, size: int, full: Callable[[], None]) -> None:
        self._size = size
        self._full = full
        self._queue: SimpleQueue[Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._alive = 0
        self._idle = 0
        """Threads that wait for work, less the work that waits for a thread."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            full = self._idle <= 0 and self._alive >= self._size * (1 + ABANDONED)
            begin = self._idle <= 0 and not full
            if begin:
                self._alive += 1
            else:
                self._idle -= 1
        self._queue.put((future, lambda: fn(*args, **kwargs)))
        if begin:
            StepThread(target=self._work, name="weaverant-step", daemon=True).start()
        if full:
            self._full()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:
        """Work that has not begun is cancelled, threads end when their function returns; nothing waits for that."""
        with self._lock:
            while (work := self._next_of_queue()) is not None:
                work[0].cancel()
            for _ in range(self._alive):
                self._queue.put(None)

    def _next_of_queue(self) -> Work | None:
        try:
            return self._queue.get_nowait()
        except Empty:
            return None

    def _work(self) -> None:
        go_on = True
        while go_on and (work := self._queue.get()) is not None:
            future, function = work
            del work
            if not future.set_running_or_notify_cancel():
                go_on = self._free()
                continue
            try:
                value = function()
            except BaseException as error:  # for whoever waits
                go_on = self._free()
                future.set_exception(error)
            else:
                go_on = self._free()
                future.set_result(value)
                del value
            del future, function

    def _free(self) -> bool:
        """Whether the thread is still needed. Asked before its outcome is told: what that brings may need it."""
        with self._lock:
            needed = self._idle < self._size
            if needed:
                self._idle += 1
            else:
                self._alive -= 1
        return needed
