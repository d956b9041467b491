"""Users' functions, outside the workflow: in a thread, in a process, or on the run's event loop."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from weaverant.runtime.functions import Functions, functions
from weaverant.runtime.outcome import failure_in
from weaverant.runtime.threads import ABANDONED, Threads
from weaverant.step import EffectAsk
from weaverant.task import TaskRun

if TYPE_CHECKING:
    from weaverant.runtime.workers import Workers

_GIVEN_UP = "was given up (its deadline passed, or its row ended)"


class Effects:
    """Performs effects, `threads` at once in threads, those that were given up apart."""

    def __init__(self, threads: int) -> None:
        self._size = threads
        self._threads: Threads | None = None
        self._workers: Workers | None = None
        self._functions: Functions | None = None
        """Those of the loop, once one was performed."""
        self._went_on: set[str] = set()
        """Names of functions that were given up and went on."""
        self._told: set[str] = set()
        self._stopping = False

    def stop(self) -> None:
        """What is given up from now on is so because the run stops."""
        self._stopping = True

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
        if self._workers is not None:
            self._workers.close()

    async def perform(self, run: TaskRun, ask: EffectAsk) -> Any:
        if self._functions is None:
            self._functions = functions()
        self._functions.begin(ask, run.row.key)
        try:
            if inspect.iscoroutinefunction(_unwrapped(ask.call)):
                value = await ask.call()
            else:
                value = await (self._in_process(ask) if ask.place == "process" else self._in_thread(ask))
                if inspect.isawaitable(value):
                    value = await value
            return value
        finally:
            self._functions.end(ask)

    def passed_over(self, ask: EffectAsk) -> None:
        """It was given up while it waited for its turn."""
        longest = None if self._functions is None else self._functions.longest()
        if longest is not None:
            seconds = time.monotonic() - longest.since
            self._tell(
                "over",
                f"{ask.name}() {_GIVEN_UP} before one of {self._size:,} threads was free for it: {longest.name}() has "
                f"run for {seconds:.0f} s, row {longest.row}. --threads N has more",
            )

    async def _in_process(self, ask: EffectAsk) -> Any:
        if self._workers is None:
            from weaverant.runtime.workers import Workers  # deferred: few runs need multiprocessing

            self._workers = Workers()
        return await self._workers.perform(ask.name, ask.call)

    async def _in_thread(self, ask: EffectAsk) -> Any:
        if self._threads is None:
            self._threads = Threads(self._size, self._tell_full)
        performance = _Performance(ask.call)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, performance)
        except asyncio.CancelledError:
            if performance.running:
                self._tell_given_up(ask.name)
            raise

    def _tell_given_up(self, name: str) -> None:
        self._went_on.add(name)
        self._tell(
            f"given up {name}",
            f"{name}() {_GIVEN_UP} and goes on in its thread, which nobody can end; another thread takes its place. "
            f"process_step({name}, ...) runs in a process, which is killed",
        )

    def _tell_full(self) -> None:
        names = ", ".join(f"{name}()" for name in sorted(self._went_on))
        self._tell(
            "full",
            f"{ABANDONED * self._size:,} threads are left at functions that were given up ({names}), and no more may "
            "be: a step waits until one of them returns. process_step(...) runs in a process, which is killed",
        )

    def _tell(self, what: str, text: str) -> None:
        """Once."""
        if what not in self._told and not self._stopping and self._functions is not None:
            self._told.add(what)
            self._functions.tell(text)


class _Performance:
    """A function on its way through a thread."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self.running = False

    def __call__(self) -> Any:
        self.running = True
        try:
            return contained(self._call)
        finally:
            self.running = False


def contained(call: Callable[[], Any]) -> Any:
    """Raises nothing but `StepFailed`: no future holds a StopIteration, and not every exception survives pickling."""
    try:
        return call()
    except BaseException as error:  # the boundary to users' functions
        raise failure_in(error) from None


def _unwrapped(call: Callable[[], Any]) -> Any:
    return call.func if isinstance(call, partial) else call
