"""The private event loop of one workflow.

Everything enters it through the journal, in journal order, one at a time, and the loop runs to rest in between:
answers, failures, timers. New calls start only at rest with no recorded answer pending. A live run and a replayed
one are the same code; they differ only in where the answers come from (design.md, section 4).
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import current_task
from asyncio.events import _get_running_loop, _set_running_loop  # pyright: ignore[reportPrivateUsage]
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from heapq import heappop, heappush
from random import Random
from sys import get_asyncgen_hooks, set_asyncgen_hooks
from typing import Any, Protocol
from zlib import crc32

from weaverant.branch import CANCELLED, Branch, BranchTask, Callback, Record, Timer, TimerKey
from weaverant.errors import StepFailed, WorkflowError
from weaverant.message import Reply, Usage, digest
from weaverant.refused import refuse_all, refuse_unordered
from weaverant.step import Ask, StepKey
from weaverant.talk import Talks

SPIN_LIMIT = 1_000_000
"""Callbacks between two rests after which a workflow counts as spinning: seconds of one core."""

Outer = tuple[asyncio.AbstractEventLoop | None, Any]
"""The loop that ran before, and its hooks for asynchronous generators."""


class _Gone:
    """The host of a loop that has ended: nothing that a dying coroutine still does has an effect."""

    def launch(self, ask: Ask) -> None: ...

    def abandon(self, ask: Ask) -> None: ...

    def arm(self, timer: Timer) -> None: ...

    def disarm(self, timer: Timer) -> None: ...


_GONE = _Gone()


class Host(Protocol):
    """The task that a loop belongs to, as the loop sees it."""

    def launch(self, ask: Ask) -> None:
        """Work on the ask; its outcome comes back through `advance`, never during this call."""
        ...

    def abandon(self, ask: Ask) -> None:
        """The workflow cancelled a launched ask: stop the work, record the cancellation."""
        ...

    def arm(self, timer: Timer) -> None: ...

    def disarm(self, timer: Timer) -> None: ...


class WorkflowLoop(asyncio.AbstractEventLoop):
    """Runs one workflow. `records` are the recorded outcomes by key, which replay takes out as they are asked for."""

    def __init__(
        self,
        host: Host,
        steps: dict[StepKey, Record],
        timers: dict[TimerKey, Record],
        *,
        time: float,
        seed: bytes,
        name: str,
        binding: object,
    ) -> None:
        self.binding = binding
        self.clock = 0.0
        self.wall = time
        self._host = host
        self._steps = steps
        self._timers = timers
        self._ready: list[Callback] = []
        self._answers: list[tuple[int, Ask | Timer, Record]] = []
        self._fresh: list[Ask | Timer] = []
        self._abandoned: list[Ask] = []
        self.open = 0
        """Asks and timers that wait. With none, a workflow at rest is stuck: nothing can wake it."""
        self._root = Branch("")
        self._serial = crc32(name.encode()) << 24
        self._spawned: list[BranchTask] = []
        self._prune_at = 64
        self._ended = False
        self._main: BranchTask | None = None
        self._seed = seed
        self._rngs: dict[tuple[str, str], Random] = {}
        self.talks: Talks | None = None
        """Conversations that may go on."""
        self.taught: deque[Any] | None = None
        """Replies of compounds of which feedback would teach: `weaverant.compound.Taught`."""
        self.used: dict[str, list[Usage]] | None = None
        """By branch, what the model steps used that the workflow has seen end, once somebody wants to know."""

    # What the task drives

    def start(self, main: Coroutine[Any, Any, Any]) -> None:
        self._main = self._spawn(main, Branch(""), None)
        self._root = self._main.branch

    def advance(self, asked: Ask | Timer | None = None, record: Record | None = None) -> bool:
        """Run to rest, show the next recorded outcome, and so on; last the one that was just journaled, if one is
        given. Then start what is new. True: the end is reached.

        Must be called from a callback of the outer loop, not from inside one of its tasks (Python 3.14 refuses to
        enter a task within a task).
        """
        main, answers = self._main, self._answers
        assert main is not None
        outer = self._enter()
        try:
            while True:
                if self._ready:
                    self._run_to_rest()
                if main.done():
                    self._cancel_the_rest()
                    return True
                if answers:
                    self._settle(*heappop(answers)[1:])
                elif record is None or asked is None:
                    break
                else:
                    self._settle(asked, record)
                    record = None
        finally:
            _leave(outer)
            if self._abandoned:
                self._tell_abandoned()
        if self._fresh:
            self._start_fresh()
        return False

    @property
    def branch(self) -> str:
        """The path of the branch that runs now."""
        return self._branch().path

    @property
    def unasked(self) -> int:
        """Recorded outcomes that the workflow never asked for: where replay diverged from history."""
        return len(self._steps) + len(self._timers)

    def first_unasked(self) -> str:
        """The first of them, for people; empty where there is none."""
        if not self.unasked:
            return ""
        left = [(record.number, key[0], record.name) for key, record in (*self._steps.items(), *self._timers.items())]
        number, path, name = min(left)
        return f"event {number}: {name!r} in branch {path or 'root'!r}"

    def error(self) -> BaseException | None:
        """What the main task raised. It is not raised again: its traceback would hold on to whoever asks, and so to
        all of the task. But for KeyboardInterrupt, which is nothing of the workflow's."""
        assert self._main is not None
        try:
            error = self._main.exception()
        except asyncio.CancelledError as cancelled:
            return cancelled
        if isinstance(error, KeyboardInterrupt):
            raise error
        return error

    def result(self) -> Any:
        """What the main task returned."""
        assert self._main is not None
        return self._main.result()

    def close(self) -> None:
        """End the workflow where it stands: no exception that it could catch, `finally` blocks run, no more steps."""
        self._ended = True
        outer = self._enter()
        try:
            while self._spawned:
                task = self._spawned.pop()
                if not task.done():
                    _close(task)
        finally:
            _leave(outer)
        self._release()

    # What agents and effects use

    def ask(self, ask: Ask, fingerprint: bytes) -> asyncio.Future[Any]:
        """Open an ask in the current branch. Once the workflow has ended its future waits for ever, that is, until
        whoever awaits it is closed: an exception would let a loop that swallows all of them spin."""
        key = ask.key = self._branch().key(fingerprint)
        future: asyncio.Future[Any] = asyncio.Future(loop=self)
        ask.future = future
        self.open += 1
        if not self._ended:
            record = self._steps.pop(key, None) if self._steps else None
            if record is None or record.outcome is CANCELLED:
                self._fresh.append(ask)
            else:
                heappush(self._answers, (record.number, ask, record))
        return future

    async def answer(self, ask: Ask, fingerprint: bytes) -> Any:
        """The ask's value, or its `StepFailed`. Cancelled while it waits, it is abandoned."""
        try:
            return await self.ask(ask, fingerprint)  # named by no local: a failure's traceback would hold it, a cycle
        except asyncio.CancelledError:
            if not ask.settled:
                ask.settled = True
                self.open -= 1
                if ask.launched:
                    self._abandoned.append(ask)
            raise

    def apart(self, main: Coroutine[Any, Any, Any]) -> BranchTask:
        """Run it in a branch for one call of a compound model, inside the current one."""
        return self._spawn(main, self._branch().call(), None)

    def _drop_timer(self, timer: Timer) -> None:
        if not timer.settled:
            timer.settled = True
            self.open -= 1
            self._host.disarm(timer)

    def rng(self, name: str) -> Random:
        """One generator for each name in each branch, seeded by the row's content."""
        path = self._branch().path
        found = self._rngs.get((path, name))
        if found is None:
            found = self._rngs[path, name] = Random(digest(self._seed + f"|{path}|{name}".encode()))
        return found

    # What asyncio asks of a loop

    def call_soon(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Callback:
        handle = Callback(callback, args, context if context is not None else copy_context())
        self._ready.append(handle)
        return handle

    def call_later(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Timer:
        return self.call_at(self.clock + delay, callback, *args, context=context)

    def call_at(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Timer:
        branch = self._branch()
        key = (branch.path, branch.timers)
        branch.timers += 1
        timer = Timer(
            callback,
            args,
            context if context is not None else copy_context(),
            drop=self._drop_timer,
            key=key,
            due=when,
        )
        self.open += 1
        record = self._timers.pop(key, None)
        if record is None:
            self._fresh.append(timer)
        else:
            heappush(self._answers, (record.number, timer, record))
        return timer

    def time(self) -> float:
        return self.clock

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: Any,
    ) -> BranchTask:
        if sys._getframe(1).f_globals.get("__name__") == "asyncio.tasks":  # pyright: ignore[reportPrivateUsage]
            refuse_unordered(sys._getframe(2), coro)  # pyright: ignore[reportPrivateUsage]
        return self._spawn(coro, self._branch().spawn(), context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception that nobody awaited. It is the workflow's own affair, as in asyncio, without the log line."""

    # The inside

    def _enter(self) -> Outer:
        """From here to `_leave` this is the loop that workflow code finds, also where it leaves an `async for` early:
        what is in the generator's `finally` belongs to the workflow and not to the run's loop."""
        outer = _get_running_loop(), get_asyncgen_hooks()
        _set_running_loop(self)
        set_asyncgen_hooks(None, self._finish_generator)
        return outer

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close it in a branch apart: when the collector finds one is no part of the workflow's order."""
        if self._ended or _get_running_loop() is not self:
            _drive_out(generator)
        else:
            self._spawn(generator.aclose(), self._branch().leave(), None)

    def _branch(self) -> Branch:
        task = current_task(self)
        return task.branch if type(task) is BranchTask else self._root

    def _spawn(self, coro: Coroutine[Any, Any, Any], branch: Branch, context: Context | None) -> BranchTask:
        task = BranchTask(coro, self, branch, self._serial, context if context is not None else copy_context())
        self._serial += 1
        if len(self._spawned) >= self._prune_at:
            self._spawned = [t for t in self._spawned if not t.done()]
            self._prune_at = max(64, 2 * len(self._spawned))
        self._spawned.append(task)
        return task

    def _run_to_rest(self) -> None:
        budget = SPIN_LIMIT
        while self._ready:
            ready, self._ready = self._ready, []
            left = iter(ready)
            try:
                for handle in left:
                    if not handle.gone:
                        try:
                            handle.context.run(handle.callback, *handle.args)
                        except SystemExit:
                            pass  # the task that called sys.exit() holds it as its exception
            except KeyboardInterrupt:  # the run shuts down, and shows the workflow what was recorded until then
                self._ready[:0] = left
                raise
            budget -= len(ready)
            if budget < 0:
                raise StepFailed("spins", f"the workflow ran {SPIN_LIMIT:,} callbacks without waiting for anything")

    def _settle(self, asked: Ask | Timer, record: Record) -> None:
        """Show the workflow an outcome, if it still waits for it."""
        if asked.settled:
            return
        asked.settled = True
        self.open -= 1
        self.clock = max(self.clock, record.clock)  # after a retry, a record may be older than the one before
        self.wall = record.time
        if isinstance(asked, Ask):
            asked.number = record.number
            future, outcome = asked.future, record.outcome
            assert future is not None
            if self.used is not None and isinstance(outcome, (Reply, StepFailed)) and outcome.usage is not None:
                self.used.setdefault(asked.key[0], []).append(outcome.usage)
            asked.future = None
            if isinstance(outcome, StepFailed):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        else:
            self._ready.append(asked)

    def _start_fresh(self) -> None:
        fresh, self._fresh = self._fresh, []
        for asked in fresh:
            if asked.settled:
                continue
            if isinstance(asked, Ask):
                asked.launched = True
                self._host.launch(asked)
            else:
                self._host.arm(asked)

    def _tell_abandoned(self) -> None:
        """Only now, because the host works on the outer loop, which was not the running one inside the workflow."""
        abandoned, self._abandoned = self._abandoned, []
        for ask in abandoned:
            self._host.abandon(ask)

    def _cancel_the_rest(self) -> None:
        """The workflow has returned: what it left running is cancelled and gets to run its `finally` blocks."""
        self._ended = True
        left = [task for task in self._spawned if not task.done()]
        for task in left:
            task.cancel()
        if left:
            self._run_to_rest()
        for task in reversed(left):
            if not task.done():
                _close(task)

    def _release(self) -> None:
        """Cut the reference cycles, so that a finished task is freed at once: the collector runs too seldom for that
        (left to it, a run grew by 0.3 kB a task)."""
        self._main = None
        self._host = _GONE
        self._ready.clear()
        self._spawned.clear()
        self._answers.clear()
        self._fresh.clear()


def _leave(outer: Outer) -> None:
    loop, hooks = outer
    set_asyncgen_hooks(*hooks)
    _set_running_loop(loop)


def _close(task: BranchTask) -> None:
    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        task.scope.run(task.get_coro().close)  # pyright: ignore[reportOptionalMemberAccess]
    except KeyboardInterrupt:
        raise
    except BaseException:  # a `finally` that awaits or raises has no one left to tell
        pass


def _drive_out(generator: AsyncGenerator[Any, Any]) -> None:
    outer = _get_running_loop()
    _set_running_loop(None)  # its steps must not become another workflow's
    closing = generator.aclose()
    try:
        closing.send(None)
    except BaseException:  # done, or a `finally` that raises and has no one left to tell
        return
    finally:
        closing.close()
        _set_running_loop(outer)


refuse_all(WorkflowLoop)


class Named(Protocol):
    @property
    def name(self) -> str: ...


def current_loop(what: str | Named) -> WorkflowLoop:
    """The loop of the workflow that runs now, for `what`: an agent, or a word by its name."""
    loop = _get_running_loop()
    if type(loop) is not WorkflowLoop:
        name = what if isinstance(what, str) else f"agent {what.name!r}"
        raise WorkflowError(
            f"{name} works only inside a workflow. Await it in an async function decorated with @workflow; "
            "a function given to step(), and a tool, cannot take steps of its own"
        )
    return loop
