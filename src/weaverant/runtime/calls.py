"""The queue of work that tasks wait for: model calls and effects, the oldest row's first, so many at once."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from heapq import heappop, heappush
from multiprocessing import parent_process
from typing import Any, get_args

import msgspec

from weaverant.agent import Binding
from weaverant.branch import CANCELLED
from weaverant.errors import RAISED, StepFailed, Unavailable, UserError, place_of, shown
from weaverant.message import FinishReason, Message, Reply, Usage
from weaverant.protocols import CallContext
from weaverant.runtime.budget import Budget
from weaverant.runtime.limits import Limits
from weaverant.runtime.outlook import Outlook
from weaverant.step import Ask, EffectWork, ModelWork, Turn
from weaverant.task import TaskRun
from weaverant.trace import plain


class Slots:
    """So many asks at once; the rest wait, the oldest row's first."""

    def __init__(
        self,
        size: int,
        perform: Callable[[TaskRun, Ask], Any],
        idle: Callable[[], None],
        broken: Callable[[BaseException], None],
        unavailable: Callable[[Unavailable], None],
    ) -> None:
        self.size = size
        self._broken = broken
        self._unavailable = unavailable
        self._idle = idle
        self.running: dict[asyncio.Task[None], tuple[TaskRun, Ask]] = {}
        self._perform = perform
        self._waiting: list[tuple[int, int, TaskRun, Ask]] = []
        self._arrivals = 0

    @property
    def free(self) -> int:
        """Slots that no ask has or waits for; negative where more wait than there are."""
        return self.size - len(self.running) - len(self._waiting)

    def submit(self, run: TaskRun, ask: Ask) -> None:
        if len(self.running) < self.size:
            self._begin(run, ask)
        else:
            self._arrivals += 1
            heappush(self._waiting, (run.row.order, self._arrivals, run, ask))

    def park(self) -> None:
        """Forget what waits, here or inside an engine."""
        self._waiting.clear()
        for work, (_, ask) in self.running.items():
            if ask.turn is not None and ask.turn.waiting:
                work.cancel()

    def abandon(self, run: TaskRun) -> None:
        """The task failed while it waited: record its asks in flight as cancelled, and stop working on them."""
        for work, (owner, ask) in list(self.running.items()):
            if owner is run:
                run.record(ask, CANCELLED)
                work.cancel()

    def _begin(self, run: TaskRun, ask: Ask) -> None:
        task = asyncio.get_running_loop().create_task(self._work(run, ask))
        ask.handle = task
        run.begun(ask)
        self.running[task] = (run, ask)
        task.add_done_callback(self._done)

    async def _work(self, run: TaskRun, ask: Ask) -> None:
        task = ask.handle
        assert task is not None
        try:
            outcome = await self._perform(run, ask)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the boundary to engines and users' functions
            if task.cancelling():
                return
            if isinstance(error, Unavailable):
                self._unavailable(error)
                return
            outcome = _failure(error)
        run.record(ask, outcome)

    def _done(self, task: asyncio.Task[None]) -> None:
        """A callback, because a task that is cancelled before its first step runs no line of its own."""
        self.running.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken(error)  # its outcome could not be recorded: the task would wait for ever
        while self._waiting and len(self.running) < self.size:
            _, _, run, ask = heappop(self._waiting)
            if not run.closed and not ask.future.done():
                self._begin(run, ask)
        if not self._waiting:
            self._idle()


class Calls:
    """Works on asks: model calls through their engines, effects in threads, processes or on the loop."""

    def __init__(
        self,
        binding: Binding,
        limits: Limits,
        idle: Callable[[], None],
        broken: Callable[[BaseException], None],
        unavailable: Callable[[Unavailable], None],
        run: str,
        budget: Budget | None,
        outlook: Outlook | None = None,
    ) -> None:
        """`idle` is called whenever a slot is free and nothing waits for it, `unavailable` for a call that found
        nobody to ask."""
        self._binding = binding
        self._run = run
        self._budget = budget
        self._outlook = outlook
        self._models: dict[int, Slots] = {}
        """By engine, so that calls which wait for a slow model keep no fast one idle."""
        self._effects = Slots(limits.threads, self._effect, idle, broken, unavailable)
        self._model_slots = partial(Slots, limits.concurrency, self._generate, idle, broken, unavailable)
        self._threads = limits.threads
        self._executors: dict[str, Executor] = {}
        self._parked = False

    @property
    def free(self) -> bool:
        """Whether some model could take one more call than there are for it. Models that nobody has asked yet do not
        count: rows that are started before they are needed only delay the first results."""
        return not self._models or any(slots.free > 0 for slots in self._models.values())

    def submit(self, run: TaskRun, ask: Ask) -> None:
        if not self._parked:
            (self._slots(ask.work.request.model) if isinstance(ask.work, ModelWork) else self._effects).submit(run, ask)

    def park(self) -> None:
        """Start nothing more: what waits stays unasked, and is asked again when the run is resumed."""
        self._parked = True
        for slots in self._all():
            slots.park()

    def running(self) -> set[asyncio.Task[None]]:
        return {task for slots in self._all() for task in slots.running}

    def sent(self) -> int:
        """How many of them do not wait inside their engine."""
        asks = [ask for slots in self._all() for _, ask in slots.running.values()]
        return sum(ask.turn is None or not ask.turn.waiting for ask in asks)

    def abandon(self, run: TaskRun) -> None:
        for slots in self._all():
            slots.abandon(run)

    def close(self) -> None:
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)

    def _all(self) -> list[Slots]:
        return [*self._models.values(), self._effects]

    def _slots(self, model: str) -> Slots:
        key = id(self._binding.engine(model))
        found = self._models.get(key)
        if found is None:
            found = self._models[key] = self._model_slots()
        return found

    async def _generate(self, run: TaskRun, ask: Ask) -> Any:
        work = ask.work
        assert isinstance(work, ModelWork)
        engine = self._binding.engine(work.request.model)
        assert engine is not None, "an agent is bound only where its model has an engine"
        row, request, (path, _, occurrence) = run.row, work.request, ask.key
        purse = None
        if self._budget is not None:
            purse = self._budget.purse(row.key, row.order, ask, engine, request)
        if self._outlook is not None:
            self._outlook.note(engine, request)
        turn = ask.turn = Turn()
        ctx = CallContext(row.key, path, occurrence, row.order, self._run, purse, turn)
        try:
            reply = await engine.generate(request, ctx)
        except (asyncio.CancelledError, Unavailable) as error:
            if purse is not None and (turn.waiting or isinstance(error, Unavailable)):
                purse.take_back()
            raise
        return _checked(reply, work.request.model)

    async def _effect(self, run: TaskRun, ask: Ask) -> Any:
        work = ask.work
        assert isinstance(work, EffectWork)
        if inspect.iscoroutinefunction(_unwrapped(work.call)):
            value = await work.call()
        else:
            value = await self._outside(work, ask.name)
            if inspect.isawaitable(value):
                value = await value
        try:
            return plain(value, f"the value of {ask.name}()")
        except UserError as error:
            raise StepFailed("value", str(error)) from None

    async def _outside(self, work: EffectWork, name: str) -> Any:
        """In a thread or process. A process that dies takes its whole pool along, so what the pool was at is done
        again, each call in a process of its own: the one that dies once more is to blame."""
        loop, call = asyncio.get_running_loop(), partial(_contained, work.call)
        executor = self._executor(work.place)
        try:
            return await loop.run_in_executor(executor, call)
        except BrokenExecutor:
            if self._executors.get(work.place) is executor:
                del self._executors[work.place]
        with ProcessPoolExecutor(1, initializer=_end_with_parent) as alone:
            try:
                return await loop.run_in_executor(alone, call)
            except BrokenExecutor:
                raise StepFailed("died", f"the process that ran {name}() died: killed, or out of memory") from None

    def _executor(self, place: str) -> Executor:
        found = self._executors.get(place)
        if found is None:
            if place == "thread":
                found = ThreadPoolExecutor(self._threads, "weaverant-step")
            else:
                found = ProcessPoolExecutor(initializer=_end_with_parent)
            self._executors[place] = found
        return found


def _checked(reply: Any, model: str) -> Reply:
    """The reply, if a journal that holds it can be read again. Anybody may write an engine."""
    if type(reply) is Reply and _is_plain(reply):
        return reply
    try:
        return _decode(_encode(reply))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        text = f"the engine of {model!r} gave what is no Reply: {error}. Expected weaverant.Reply, found {reply!r:.200}"
        raise StepFailed("engine", text) from None


def _is_plain(reply: Reply) -> bool:
    """A bare text with its usage, each field of the type it is declared with: the common case, without a copy."""
    message, usage = reply.message, reply.usage
    return (
        type(message) is Message
        and type(message.content) is str
        and message.role == "assistant"
        and message.tool_calls == ()
        and message.tool_call_id is None
        and message.reasoning is None
        and reply.finish in FINISHES
        and reply.tokens is None
        and reply.more == ()
        and type(reply.model) is str
        and type(usage) is Usage
        and type(usage.cost) is float
        and type(usage.unsure) is float
        and type(usage.prompt_tokens) is int
        and type(usage.completion_tokens) is int
        and type(usage.cached_tokens) is int
        and type(usage.reasoning_tokens) is int
        and type(usage.requests) is int
    )


FINISHES = frozenset(get_args(FinishReason))
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reply).decode
_decode_usage = msgspec.msgpack.Decoder(Usage).decode


def _failure(error: BaseException) -> StepFailed:
    if not isinstance(error, StepFailed):
        place = place_of(error)
        return StepFailed(type(error).__name__, shown(error), {RAISED: place} if place else None)
    if error.usage is not None:
        error.usage = _checked_usage(error.usage)
    return error


def _checked_usage(usage: Any) -> Usage | None:
    """The usage, if a journal that holds it can be read again. Anybody may write an engine."""
    try:
        return _decode_usage(_encode(usage))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None


def _contained(call: Callable[[], Any]) -> Any:
    """Raises nothing but `StepFailed`: no future holds a StopIteration, and not every exception survives pickling."""
    try:
        return call()
    except BaseException as error:  # the boundary to users' functions
        raise _failure(error) from None


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
