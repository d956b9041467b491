"""Processes for users' functions that compute for long: one for each core, each at one call at a time.

A call that is given up takes its process along, so that none which never ends keeps a core; a process that dies
takes no other call along.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe, Process, parent_process
from multiprocessing.connection import wait
from typing import Any, Protocol

from weaverant.errors import StepFailed
from weaverant.runtime.effects import contained


class Died(Exception):
    """The process of a worker is gone, and what it was at with it."""


class Pipes(Protocol):
    """One end of a pipe. What goes through it is pickled."""

    def send(self, obj: Any, /) -> None: ...

    def recv(self) -> Any: ...


class Worker:
    """A process. It does one call at a time."""

    def __init__(self) -> None:
        self._pipe, theirs = Pipe()
        self._process = Process(target=_work, args=(theirs,), name="weaverant-step")
        self._process.start()
        theirs.close()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def perform(self, call: Callable[[], Any]) -> Any:
        """The call's value, or `StepFailed`; `Died`. Waits for it, so this is not for the event loop."""
        gone = self._process.sentinel
        try:
            self._pipe.send(call)
            if self._pipe not in wait([self._pipe, gone]):
                raise EOFError
            return told(self._pipe)
        except (EOFError, OSError):
            if not wait([gone], 1.0):  # the process is well: a user's object raised it
                raise
            self._process.join()
            raise Died from None

    def end(self) -> None:
        """Soon, whatever it is at."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended, for a second at most."""
        self._process.join(1.0)


class Workers:
    """As many processes as there are cores, made when they are wanted."""

    def __init__(self) -> None:
        seats = cores()
        self._seats = asyncio.Semaphore(seats)
        self._threads = ThreadPoolExecutor(seats, "weaverant-process")
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._ended: list[Worker] = []

    async def perform(self, name: str, call: Callable[[], Any]) -> Any:
        """The call's value, or `StepFailed`. Cancelled, it ends the process that is at it."""
        async with self._seats:
            worker = self._take()
            try:
                return await asyncio.get_running_loop().run_in_executor(self._threads, worker.perform, call)
            except Died:
                self._end(worker)
                raise StepFailed("died", f"the process that ran {name}() died: killed, or out of memory") from None
            except asyncio.CancelledError:
                self._end(worker)
                raise
            finally:
                self._give_back(worker)

    def close(self) -> None:
        """End all of them, and wait for it: a process that was forked holds the lock of the run as long as it lives."""
        for worker in (*self._idle, *self._busy):
            self._end(worker)
        self._idle.clear()
        for worker in self._ended:
            worker.wait()
        self._threads.shutdown(wait=False)

    def _take(self) -> Worker:
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                break
            worker.end()
        else:
            worker = Worker()
        self._busy.add(worker)
        return worker

    def _give_back(self, worker: Worker) -> None:
        if worker in self._busy:
            self._busy.discard(worker)
            self._idle.append(worker)

    def _end(self, worker: Worker) -> None:
        self._busy.discard(worker)
        worker.end()
        self._ended = [each for each in (*self._ended, worker) if each.alive]


def cores() -> int:
    return os.cpu_count() or 1


# What goes through the pipe


def answer(pipe: Pipes) -> None:
    """Do the next call that comes, and send back whether it gave a value, and that or its failure."""
    try:
        said = True, contained(lambda: pipe.recv()())
    except StepFailed as failure:  # in parts, as not every subclass can be made again
        said = False, (failure.kind, failure.text, failure.detail)
    try:
        contained(lambda: pipe.send(said))
    except StepFailed as failure:
        text = f"what it gave cannot leave its process: {failure}. Expected plain data"
        pipe.send((False, ("value", text, None)))


def told(pipe: Pipes) -> Any:
    """The value in an answer, or `StepFailed`."""
    has_value, outcome = pipe.recv()
    if has_value:
        return outcome
    raise StepFailed(*outcome)


# In the process


def _work(pipe: Pipes) -> None:
    _end_with_parent()
    with suppress(OSError):  # nobody listens any more
        while True:
            answer(pipe)


def _end_with_parent() -> None:
    """A worker whose run was killed would wait for work for ever. One that hears Ctrl-C, or that the terminal was
    closed, would die of it and fail its step, or, having been forked with the loop's wake-up pipe, tell the run of the
    same signal a second time."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
