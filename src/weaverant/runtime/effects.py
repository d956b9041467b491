"""Users' functions, outside the workflow: in a thread, in a process, or on the run's event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from weaverant.runtime.outcome import failure_in
from weaverant.step import EffectAsk
from weaverant.task import TaskRun

if TYPE_CHECKING:
    from weaverant.runtime.workers import Workers


class Effects:
    """Performs effects, `threads` at once in threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._executor: ThreadPoolExecutor | None = None
        self._workers: Workers | None = None

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.close()

    async def perform(self, run: TaskRun, ask: EffectAsk) -> Any:
        if inspect.iscoroutinefunction(_unwrapped(ask.call)):
            value = await ask.call()
        else:
            value = await self._outside(ask)
            if inspect.isawaitable(value):
                value = await value
        return value

    async def _outside(self, ask: EffectAsk) -> Any:
        """In a thread or process."""
        if ask.place == "process":
            if self._workers is None:
                from weaverant.runtime.workers import Workers  # deferred: few runs need multiprocessing

                self._workers = Workers()
            return await self._workers.perform(ask.name, ask.call)
        if self._executor is None:
            self._executor = ThreadPoolExecutor(self._threads, "weaverant-step")
        return await asyncio.get_running_loop().run_in_executor(self._executor, contained, ask.call)


def contained(call: Callable[[], Any]) -> Any:
    """Raises nothing but `StepFailed`: no future holds a StopIteration, and not every exception survives pickling."""
    try:
        return call()
    except BaseException as error:  # the boundary to users' functions
        raise failure_in(error) from None


def _unwrapped(call: Callable[[], Any]) -> Any:
    return call.func if isinstance(call, partial) else call
