"""The local swarm: one process, thousands of rows in flight, no server.

Rows are taken as slots free themselves, the oldest is always served first, and finished tasks stream out. A stop
never raises inside a workflow: what is in flight may finish, the rest is parked and carries on when resumed.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from weaverant.binding import Binding
from weaverant.errors import JournalCorrupt, JournalError, Unavailable, shown
from weaverant.events import (
    NO_USAGE,
    AgentBound,
    CostReserved,
    Event,
    RunClosed,
    StepEnded,
    TaskEnded,
    TaskEvent,
    TaskStarted,
    TaskTaken,
)
from weaverant.message import Usage
from weaverant.past import Blob
from weaverant.protocols import Clock, Engine, Journal, Unreadable
from weaverant.runtime.arrivals import Arrivals
from weaverant.runtime.budget import Budget
from weaverant.runtime.calls import Calls
from weaverant.runtime.ending import to_its_end
from weaverant.runtime.fuse import Fuse
from weaverant.runtime.intake import RowsIn
from weaverant.runtime.ledger import Ledger
from weaverant.runtime.limits import Limits
from weaverant.runtime.outlook import Outlook
from weaverant.runtime.permit import RevocablePermit
from weaverant.runtime.recovery import started_of
from weaverant.runtime.slots import Owner
from weaverant.runtime.stagebook import Refused
from weaverant.runtime.unfinished import Begun
from weaverant.step import Ask, ModelAsk
from weaverant.task import Reusable, Row, Task, TaskRun
from weaverant.workflow import Group, Workflow

ADMISSION_SLICE = 0.002
"""Seconds of starting rows after which the event loop gets its turn."""

CANCEL_SECONDS = 3.0
"""How long an engine may take to let go of a cancelled call, before the run ends without it."""

MOST_WHY = 2_000
"""Characters of the error that stopped a run which the journal keeps."""

UNSEEN_RESULTS = 1_000
"""Finished tasks that wait for the caller before no more rows are started."""


class LocalSwarm:
    """All of a run in this process. `async for task in swarm.run()` gives every task as it ends."""

    def __init__(
        self,
        stages: Sequence[Workflow | Group],
        binding: Binding,
        journal: Journal,
        intake: RowsIn,
        ledger: Ledger,
        limits: Limits,
        *,
        blob: Blob,
        run: str = "",
        budget: Budget | None = None,
        reuse: Callable[[str, bytes], Reusable | None] | None = None,
        outlook: Outlook | None = None,
        clock: Clock = time,
        grown: Callable[[int], None] = lambda rows: None,
        permit: RevocablePermit | None = None,
        closing: Callable[[RunClosed], Event] = lambda close: close,
        afar: Callable[[ModelAsk], Engine | None] | None = None,
    ) -> None:
        """`outlook` is for a pilot, `clock` for a simulated one; `grown` is told how many rows are in flight whenever
        one more is. What is asked for without the `permit`, where there is one, waits until `go_on`. `closing` makes
        the last event. `afar` gives an engine for calls that other peers are to make."""
        self.binding = binding
        self.clock = clock
        self.ledger = ledger
        self.stopped = ""
        """Why the run stopped before its end: `interrupted`, `fuse`, `journal`, `source`, `closed`, `broken`, `budget`,
        `pilot`, `server`."""
        self.error: BaseException | None = None
        self._stages = stages
        self._journal = journal
        self._limits = limits
        self._blob = blob
        self._intake = intake
        intake.attach(self._write_plain, self._source_failed, self._broken)
        self._reuse = reuse
        self._budget = budget
        self._outlook = outlook
        if budget is not None:
            budget.attach(self.write_reservation, partial(self.stop, "budget", math.inf))
        owner = Owner(Arrivals(clock, self._broken), self._admit_soon, self._broken, self._unavailable, permit)
        self._calls = Calls(binding, limits, owner, run, budget, outlook, afar, permit)
        self._permit = permit
        self.launch = self._calls.submit
        self._live: dict[str, TaskRun] = {}
        self._pending_ends = 0
        self._results: deque[Task] = deque()
        self._wake = asyncio.Event()
        self._admitting = False
        self._grown = grown
        self._closing = closing
        self._fuse = Fuse(limits.max_failures, limits.fuse_after)
        self._session_ended = 0
        self._gave_up = False
        self._timers: list[asyncio.TimerHandle] = []
        self._hurried = False
        """Calls in flight have been given so much time and no more."""
        self.cut = 0
        """Calls that were cut off when the run stopped, sent and with no money set aside for them."""

    # What the caller does

    async def run(self) -> AsyncGenerator[Task, None]:
        """Every task that ends in this session, in the order of ending. Leaving the loop early stops the run."""
        loop = asyncio.get_running_loop()

        def more() -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody wants more
                loop.call_soon_threadsafe(self._admit_soon)

        self._intake.wake_with(more)
        self._admit_soon()
        try:
            while not self._over():
                await self._wake.wait()
                self._wake.clear()
                while self._results:
                    yield self._results.popleft()
                    self._admit_soon()
            await self._settle()
            while self._results:
                yield self._results.popleft()
        finally:
            await to_its_end(self._shut())

    def stop(self, reason: str, grace: float | None = None) -> None:
        """Start nothing more; give what is in flight `grace` seconds; leave a run that can be resumed.

        Called again, it does not wait any longer. With infinite grace calls in flight end as they would; users'
        functions, which nobody has paid for, have the time that they always have.
        """
        if self._hurried:
            grace = 0.0
        self.stopped = self.stopped or reason
        self._park()
        if grace is None:
            grace = self._limits.grace
        if grace < math.inf:
            self._hurried = True
            self._later(grace, self._cancel_calls)
        else:
            self._later(self._limits.grace, self._calls.cancel_effects)
        self._wake.set()

    def journal_failed(self, error: JournalError) -> None:
        """The journal cannot go on: nothing after this would be safe."""
        if self.stopped != "journal":
            self.error = error
            self.stopped = "journal"
            self._park()
            self._cancel_calls()
            self._wake.set()

    @property
    def hurried(self) -> bool:
        """Whether calls in flight have only so much time left: `stop` cuts them off."""
        return self._hurried

    @property
    def appetite(self) -> int:
        """Rows that could start now."""
        return 0 if self.stopped else max(0, min(self._limits.tasks - len(self._live), self._calls.room))

    def broken(self, error: BaseException) -> None:
        """Something that belongs to the run is at fault: it ends."""
        self._broken(error)

    def go_on(self) -> None:
        """It may call again, or there may be more rows."""
        if self._permit is not None:
            self._permit.go_on()
        if not self.stopped:
            self._calls.go_on()
            self._admit_soon()

    @property
    def in_flight(self) -> tuple[int, int]:
        """(rows, calls) in flight."""
        return len(self._live), len(self._calls.running())

    @property
    def sent(self) -> int:
        """Calls in flight that wait neither inside an engine nor for money."""
        return self._calls.sent() - (0 if self._budget is None else self._budget.waiting)

    # What tasks ask of their peer

    def write(self, event: Event, durable: Callable[[], None] | None, blobs: Mapping[bytes, str] | None) -> None:
        if self.stopped == "journal":
            return
        fresh = self.binding.fresh
        try:
            while fresh:
                bound = fresh.pop()
                self._journal.append(AgentBound(bound.spec, bound.describe()))
            self._journal.append(event, durable, blobs)
        except JournalError as error:
            self.journal_failed(error)
            return
        if type(event) is StepEnded:
            self.ledger.step(event)
            if self._budget is not None:
                self._budget.serve()
        elif type(event) is TaskEnded:
            self._pending_ends += 1

    def _write_plain(self, event: Event, durable: Callable[[], None] | None = None) -> None:
        self.write(event, durable, None)

    def write_reservation(self, event: CostReserved, durable: Callable[[], None] | None) -> None:
        self.ledger.reserved.add(event)
        self.write(event, durable, None)

    def charge(self, run: TaskRun, ask: Ask, usage: Usage | None) -> Usage:
        if self._budget is None:
            if usage is None and isinstance(ask, ModelAsk) and ask.turn is not None and ask.turn.stake is not None:
                return ask.turn.stake()
            return usage or NO_USAGE
        return self._budget.charge(run.row.key, ask.key, usage)

    def cancel(self, ask: Ask) -> None:
        self._calls.cancel(ask)

    def abandon(self, run: TaskRun) -> None:
        self._calls.abandon(run)

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay, self._unless_stopped, callback)

    def ended(self, run: TaskRun, event: TaskEnded, value: Any) -> None:
        del self._live[event.task]
        self._finish(run.row, event, value, run.usage)

    # Rows in

    def _admit_soon(self) -> None:
        if self.stopped:
            self._wake.set()
        elif not self._admitting:
            self._admitting = True
            asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Start rows while there is room. Runs as a callback: a workflow's tasks may not run inside another task."""
        self._admitting = False
        until = self.clock.monotonic() + ADMISSION_SLICE
        while self._room():
            if self.clock.monotonic() > until:
                self._admit_soon()
                return
            try:
                if not self._start_one():
                    break
                self._grown(len(self._live))
            except Exception as error:  # a peer's outermost loop: a fault of our own ends the run, and hangs nothing
                self._broken(error)
        if self._intake.held_back and self._idle() and not self.stopped:
            self.stop("pilot", math.inf)
        self._wake_if_over()

    def _source_failed(self, error: BaseException) -> None:
        self.error = error
        self.stop("source")

    def _broken(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop("broken", 0.0)

    def _unavailable(self, error: Unavailable) -> None:
        """Nobody answers for a model. To go on would only turn rows into failures."""
        if not self.stopped:
            self.error = error
            self.stop("server")

    def _room(self) -> bool:
        return (
            not self.stopped
            and len(self._live) < self._limits.tasks
            and self._calls.free
            and len(self._results) < UNSEEN_RESULTS
        )

    def _start_one(self) -> bool:
        """Start the oldest row there is. False: there is none."""
        got = self._intake.next()
        if isinstance(got, Begun):
            self._restore(*got)
        elif got is not None:
            self._enter(got)
        return got is not None

    def _enter(self, got: Row | Refused) -> None:
        if isinstance(got, tuple):
            row, unreadable = got
            self.write(TaskStarted(row.key, row.stage, self.clock.time(), row.digest, None, row.parents), None, None)
            self._refuse_row(row, unreadable.text, unreadable.where)
            return
        self._fuse.began(got.key)
        reuse = None if self._reuse is None else self._reuse(got.key, got.digest)
        run = self._live[got.key] = TaskRun(self, self._stages[got.stage], got, reuse)
        try:
            run.begin()
        except (ValueError, OverflowError, RecursionError) as error:
            del self._live[got.key]
            self._enter((got, Unreadable(f"the row cannot be stored: {error}", got.key)))

    def _restore(self, order: int, events: Sequence[TaskEvent], taken: TaskTaken | None) -> None:
        if taken is not None:
            self._write_plain(taken)
        started = started_of(events)
        if started.row is None:  # the journal broke off between the two events of a row that could not be read
            self._refuse_row(Row(started.task, started.stage, order, started.digest, None), "", "")
            return
        self._fuse.began(started.task)
        reuse = None if self._reuse is None else self._reuse(started.task, started.digest)
        stage = self._stages[started.stage]
        self._live[started.task] = TaskRun.restore(self, stage, order, events, self._blob, reuse)

    def _refuse_row(self, row: Row, text: str, where: str) -> None:
        self._fuse.began(row.key)
        end = TaskEnded(row.key, row.stage, "failed", "unreadable", where, {"text": text}, 0.0, self.clock.time())
        self.write(end, lambda: self._finish(row, end, end.value, NO_USAGE), None)

    # Rows out

    def _finish(self, row: Row, event: TaskEnded, value: Any, usage: Usage) -> None:
        try:
            self._count_end(row, event, value, usage)
        except Exception as error:  # nobody would wake the run
            self._broken(error)

    def _count_end(self, row: Row, event: TaskEnded, value: Any, usage: Usage) -> None:
        self._pending_ends -= 1
        self.ledger.ended(event)
        self._session_ended += 1
        if event.state == "done":
            self._intake.made(row, value)
        self._intake.ended(row)
        if self._intake.drained:
            self._intake.close_groups()
        self._results.append(
            Task(row.key, row.stage, event.state, row.value, value, event.reason, event.where, usage, event.clock)
        )
        self._wake.set()
        blown = self._fuse.ended(row.key, event.state == "failed")
        if blown is not None and not self.stopped:
            self.error = blown
            self.stop("fuse")
        self._admit_soon()

    # The end

    def _over(self) -> bool:
        if self.stopped:
            return self._gave_up or not self._calls.running()
        return self._intake.drained and self._idle() and not self._intake.gathering

    def _idle(self) -> bool:
        return not self._live and not self._intake.waiting and not self._pending_ends

    def _park(self) -> None:
        self._calls.park()
        if self._budget is not None:
            self._budget.park()

    def _wake_if_over(self) -> None:
        if self._over():
            self._wake.set()
        elif self._intake.drained and self._idle() and not self.stopped:  # for groups that nothing can form any more
            self._broken(self._contradiction())

    def _contradiction(self) -> JournalCorrupt:
        return JournalCorrupt(f"nothing is left to do, but by what the journal told there is: {self.ledger!r}")

    def _count_cut(self) -> None:
        if self._budget is None:
            self.cut = max(self.cut, self._calls.billable())

    def _cancel_calls(self) -> None:
        self._count_cut()
        self._calls.cancel_all()
        self._later(CANCEL_SECONDS, self._give_up)
        self._wake.set()

    def _later(self, delay: float, callback: Callable[[], None]) -> None:
        """Unless the run has ended before."""
        if not self._gave_up:
            self._timers.append(asyncio.get_running_loop().call_later(delay, callback))

    def _give_up(self) -> None:
        self._gave_up = True
        self._wake.set()

    def _unless_stopped(self, callback: Callable[[], None]) -> None:
        if not self.stopped:
            callback()

    async def _shut(self) -> None:
        if not self.stopped and not self._over():
            self.stop("closed", 0.0)
        self._park()
        self._count_cut()
        self._calls.cancel_all()
        if running := [ask.handle for ask in self._calls.running() if ask.handle is not None]:
            await asyncio.wait(running, timeout=CANCEL_SECONDS)
        await self._settle()
        for run in list(self._live.values()):
            run.close()
        self._gave_up = True
        for timer in self._timers:
            timer.cancel()
        self._keep_what_was_read()
        if self.stopped == "fuse" and self._intake.nothing_left():
            self.stopped, self.error = "", None
        if not self.stopped and any(stage.left for stage in self.ledger.stages):
            self._broken(self._contradiction())
        self._calls.close()
        bound, capacities = (0.0, {}) if self._outlook is None else (self._outlook.bound, self._outlook.capacities())
        why = shown(self.error)[:MOST_WHY] if self.error is not None and self.stopped else ""
        short = None if self._budget is None or self.stopped != "budget" else self._budget.short
        close = RunClosed(self.stopped or "finished", self.clock.time(), bound, capacities, why, short, self.cut)
        self._write_plain(self._closing(close))

    def _keep_what_was_read(self) -> None:
        """Rows read ahead from a source that cannot be read again are journaled, to be worked on after a resume."""
        for got in self._intake.close():
            if isinstance(got, tuple):
                self._enter(got)
            else:
                try:
                    TaskRun(self, self._stages[0], got).journal_row()
                except (ValueError, OverflowError, RecursionError) as error:
                    self._enter((got, Unreadable(f"the row cannot be stored: {error}", got.key)))

    async def _settle(self) -> None:
        """Let everything that has come in become durable and be seen; what that ends is ended in this session."""
        try:
            while self.stopped != "journal":
                before = self._pending_ends, self._session_ended
                await self._journal.flush()
                if before == (self._pending_ends, self._session_ended) and not self._pending_ends:
                    return
        except JournalError as error:
            self.journal_failed(error)
