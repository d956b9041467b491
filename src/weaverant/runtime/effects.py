"""Users' functions, outside the workflow: in a thread, in a process, or on the run's event loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import parent_process
from typing import Any

from weaverant.errors import StepFailed
from weaverant.runtime.outcome import failure_in
from weaverant.step import EffectAsk
from weaverant.task import TaskRun


class Effects:
    """Performs effects, `threads` at once in threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executors: dict[str, Executor] = {}

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)

    async def perform(self, run: TaskRun, ask: EffectAsk) -> Any:
        if inspect.iscoroutinefunction(_unwrapped(ask.call)):
            value = await ask.call()
        else:
            value = await self._outside(ask)
            if inspect.isawaitable(value):
                value = await value
        return value

    async def _outside(self, ask: EffectAsk) -> Any:
        """In a thread or process. A process that dies takes its whole pool along, so what the pool was at is done
        again, each call in a process of its own: the one that dies once more is to blame."""
        loop, call = asyncio.get_running_loop(), partial(_contained, ask.call)
        executor = self._executor(ask.place)
        try:
            return await loop.run_in_executor(executor, call)
        except BrokenExecutor:
            if self._executors.get(ask.place) is executor:
                del self._executors[ask.place]
        with ProcessPoolExecutor(1, initializer=_end_with_parent) as alone:
            try:
                return await loop.run_in_executor(alone, call)
            except BrokenExecutor:
                raise StepFailed("died", f"the process that ran {ask.name}() died: killed, or out of memory") from None

    def _executor(self, place: str) -> Executor:
        found = self._executors.get(place)
        if found is None:
            if place == "thread":
                found = ThreadPoolExecutor(self._threads, "weaverant-step")
            else:
                found = ProcessPoolExecutor(initializer=_end_with_parent)
            self._executors[place] = found
        return found


def _contained(call: Callable[[], Any]) -> Any:
    """Raises nothing but `StepFailed`: no future holds a StopIteration, and not every exception survives pickling."""
    try:
        return call()
    except BaseException as error:  # the boundary to users' functions
        raise failure_in(error) from None


def _end_with_parent() -> None:
    """A worker whose run was killed would wait for work for ever. One that hears Ctrl-C would die of it and fail its
    step, or, having been forked with the loop's wake-up pipe, tell the run of the same signal a second time.
    SIGTERM must end it: that is how a broken pool gets rid of its workers, and it waits until they are gone."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _unwrapped(call: Callable[[], Any]) -> Any:
    return call.func if isinstance(call, partial) else call
