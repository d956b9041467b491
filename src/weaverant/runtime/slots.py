"""So many asks at once: the queue of work that tasks wait for, the oldest row's first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from heapq import heappop, heappush
from typing import Any

from weaverant.branch import CANCELLED
from weaverant.errors import Misdirected, StepFailed, Unavailable
from weaverant.events import NO_USAGE
from weaverant.runtime.arrivals import Arrivals
from weaverant.runtime.outcome import failure_in
from weaverant.step import Ask, ModelAsk
from weaverant.task import TaskRun


class Owner:
    """What slots tell the swarm. `arrivals`: what has come and is to be recorded. `idle`: a slot is free and nothing
    waits for it. `broken`: an outcome could not be recorded. `unavailable`: a call found nobody to ask. `may_call`:
    whether anything may be asked now."""

    def __init__(
        self,
        arrivals: Arrivals,
        idle: Callable[[], None],
        broken: Callable[[BaseException], None],
        unavailable: Callable[[Unavailable], None],
        may_call: Callable[[], bool] | None = None,
    ) -> None:
        self.arrivals = arrivals
        self.idle = idle
        self.broken = broken
        self.unavailable = unavailable
        self.may_call = may_call or _always


class Slots:
    """`perform` gives an ask's outcome, or raises; `check` makes sure of it, or raises."""

    __slots__ = ("_check", "_count", "_owner", "_perform", "_waiting", "running", "size")

    def __init__(
        self,
        size: int,
        perform: Callable[[TaskRun, Any], Awaitable[Any]],
        check: Callable[[Any, Any], Any],
        owner: Owner,
    ) -> None:
        self.size = size
        self.running: dict[Ask, TaskRun] = {}
        """Until their outcome is recorded; one that is about to be has no handle any more."""
        self._perform = perform
        self._check = check
        self._owner = owner
        self._waiting: list[tuple[int, int, TaskRun, Ask]] = []
        self._count = 0

    @property
    def free(self) -> int:
        """Slots that no ask has or waits for; negative where more wait than there are."""
        return self.size - len(self.running) - len(self._waiting)

    def submit(self, run: TaskRun, ask: Ask) -> None:
        if len(self.running) < self.size and self._owner.may_call():
            self._begin(run, ask)
        else:
            self._count += 1
            heappush(self._waiting, (run.row.order, self._count, run, ask))

    def cancel(self, ask: Ask) -> None:
        """Stop working on it. What has come already is recorded."""
        task = ask.handle
        if ask not in self.running:
            return
        if task is None:
            self._owner.arrivals.record_all()
        else:
            # A task that is cancelled before its first step runs no line of its own.
            task.add_done_callback(lambda _: self._left(ask))
            task.cancel()

    def cancel_all(self) -> None:
        for ask in list(self.running):
            self.cancel(ask)

    def park(self) -> None:
        """Forget what waits, here or inside an engine."""
        self._waiting.clear()
        for ask in list(self.running):
            if waits(ask):
                self.cancel(ask)

    def abandon(self, run: TaskRun) -> None:
        """The task failed while it waited: record its asks in flight as cancelled, and stop working on them."""
        self._owner.arrivals.record_all()
        for ask, owner in list(self.running.items()):
            if owner is run:
                run.record(ask, CANCELLED)
                self.cancel(ask)

    def _begin(self, run: TaskRun, ask: Ask) -> None:
        ask.started = run.clock()  # what it waited for its slot is no part of its latency
        self.running[ask] = run
        ask.handle = asyncio.Task(self._work(run, ask), loop=asyncio.get_running_loop())

    async def _work(self, run: TaskRun, ask: Ask) -> None:
        arrivals, outcome = self._owner.arrivals, None
        try:
            try:
                outcome = self._check(await self._perform(run, ask), ask)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # the boundary to engines and users' functions
                task = ask.handle
                assert task is not None
                if task.cancelling():
                    return
                if isinstance(error, Unavailable):
                    if not _is_optional(ask, error):
                        self._owner.unavailable(error)
                        return
                    error = StepFailed("unavailable", str(error), usage=error.usage or NO_USAGE)
                outcome = failure_in(error)
            if arrivals.room:
                arrivals.room -= 1
                run.record(ask, outcome)
            else:
                ask.handle = None
                arrivals.add(run, ask, outcome, self._left)
        except Exception as error:  # its outcome could not be recorded: the task would wait for ever
            self._owner.broken(error)
        finally:
            outcome = None  # a failure's traceback holds this frame
            if ask.handle is not None:
                self._left(ask)

    def _left(self, ask: Ask) -> None:
        if self.running.pop(ask, None) is None:
            return
        ask.handle = None
        self.go_on()
        if not self._waiting:
            self._owner.idle()

    def go_on(self) -> None:
        """Begin what waits, as far as there is room."""
        waiting = self._waiting
        while waiting and len(self.running) < self.size and self._owner.may_call():
            _, _, run, following = heappop(waiting)
            if not run.closed and not following.settled:
                self._begin(run, following)


def _always() -> bool:
    return True


def _is_optional(ask: Ask, error: Unavailable) -> bool:
    """Whether the step may fail instead of the run: not where a key or an address is wrong."""
    return isinstance(ask, ModelAsk) and ask.optional and not isinstance(error, Misdirected)


def waits(ask: Ask) -> bool:
    """Whether its engine has not sent anything for it yet."""
    return isinstance(ask, ModelAsk) and ask.turn is not None and ask.turn.waiting
